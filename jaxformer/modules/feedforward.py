"""The feed-forward layer's parameters: plain, gated, or of several experts."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxformer import ops
from jaxformer.modules import initial
from jaxformer.modules.config import TransformerConfig


class FeedForward(nn.Module):
    """Two matmuls around an activation (Vaswani 2017, eq. 2), or a GLU (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, D, F = self.config, x_BTD.shape[-1], self.config.feed_forward_width

        def vector(name: str, size: int):
            return self.param(name, initial.zeros, (size,)) if c.bias else None

        w_in_DF = self.param("in", initial.inner(c, D), (D, F))
        w_out_FD = self.param("out", initial.output(c, F), (F, D))
        b_in, b_out = vector("in_bias", F), vector("out_bias", D)
        if c.gated:
            w_gate_DF = self.param("gate", initial.inner(c, D), (D, F))
            return ops.gated_feed_forward(
                x_BTD, w_gate_DF, w_in_DF, w_out_FD,
                b_gate=vector("gate_bias", F), b_up=b_in, b_down=b_out, activation=c.activation,
            )  # fmt: skip
        return ops.feed_forward(
            x_BTD, w_in_DF, w_out_FD, b_in=b_in, b_out=b_out, activation=c.activation
        )


class Experts(nn.Module):
    """Gated feed-forward layers of which each token uses its best few (Jiang 2024, section 2.1)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, D, F = self.config, x_BTD.shape[-1], self.config.feed_forward_width
        X = c.num_experts
        return ops.experts(
            x_BTD,
            self.param("router", initial.inner(c, D), (D, X)),
            self.param("gate", initial.inner(c, D), (X, D, F)),
            self.param("in", initial.inner(c, D), (X, D, F)),
            self.param("out", initial.output(c, F), (X, F, D)),
            per_token=c.experts_per_token,
            activation=c.activation,
        )
