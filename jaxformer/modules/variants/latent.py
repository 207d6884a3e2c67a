"""Multi-head latent attention as a model's choice: see ops/attention/latent.py.

Shapes: B batch, T queries, S keys, N heads, D model width, Q width of the compressed queries, R of
the latent of keys and values, H head width (content, and values), P rotary width, A = H + P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules.variants.base import Attended, Given, Valid, Variant, attended
from jaxformer.ops.attention.latent import latent_attention


class Latent(Variant):
    """Keys and values of all heads from one latent a token, which is all that a cache holds.

    kv_rank: R (0: 4 head widths, as DeepSeek-V2's). q_rank: Q (0: queries are not compressed, as in
    DeepSeek-V2-Lite). rope_width: P, which comes on top of the head width (0: half of that).
    """

    kv_rank: int = 0
    q_rank: int = 0
    rope_width: int = 0
    epsilon: float = 1e-6

    VALID: ClassVar[Valid] = {"kv_rank": 0, "q_rank": 0, "rope_width": 0}

    def complaint(self, config: Any) -> str:
        """Returns what it cannot have, or ""."""
        if config.kv_heads != config.num_heads:
            return (
                f"makes keys and values for each of {config.num_heads} heads; set "
                "model.num_kv_heads=0"
            )
        if config.qk_norm or config.qk_scale:
            return (
                "has norms of its own and no single keys to scale; set model.qk_norm=False and "
                "model.qk_scale=0"
            )
        if self.rope_width % 2:
            return f"has channels that RoPE turns in pairs, but rope_width={self.rope_width} is odd"
        return ""

    def rotary_width(self, config: Any) -> int:
        """Returns P."""
        return self.rope_width or max(2, config.per_head // 4 * 2)

    def cached(self, config: Any) -> tuple[int, int, int]:
        """Returns how many matrices a row's cache holds, and the widths of its two: R and P."""
        return 1, self.kv_rank or 4 * config.per_head, self.rotary_width(config)

    @nn.nowrap
    def projections(self, config: Any, name: str) -> nn.Module:
        """Returns what makes queries, latents and rotary keys of the stream."""
        _, R, P = self.cached(config)
        return LatentProjections(config, R, P, self.q_rank, self.epsilon, name=name)

    @nn.compact
    def __call__(self, q_BTNA, c_BS1R, k_rope_BS1P, given: Given) -> Attended:
        N, H, R = given.config.num_heads, given.config.per_head, c_BS1R.shape[-1]
        w_k_RNH, w_v_RNX = (
            self.param(name, nn.initializers.normal(R**-0.5), (R, N, H))
            for name in ("keys_up", "values_up")
        )
        result = latent_attention(
            q_BTNA, c_BS1R[:, :, 0], k_rope_BS1P[:, :, 0], w_k_RNH=w_k_RNH, w_v_RNX=w_v_RNX,
            **given.options("soft_cap", "dropout_rate", "key", "backend"),
        )  # fmt: skip
        return attended(result, given)


class LatentProjections(nn.Module):
    """DeepSeek-V2's equations 9 to 17: down, a norm, and for queries up again."""

    config: Any
    kv_rank: int
    rope_width: int
    q_rank: int
    epsilon: float

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, turn: Callable[[jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (q_BTNA, latents [B, T, 1, R], rotary keys [B, T, 1, P]); `turn` is RoPE."""
        c, D, P = self.config, x_BTD.shape[-1], self.rope_width
        N, H = c.num_heads, c.per_head

        def matrix(name: str, *shape: int) -> jax.Array:
            fan_in = c.init == "fan_in" or shape[0] != D
            std = shape[0] ** -0.5 if fan_in else c.init_std
            return self.param(name, nn.initializers.normal(std), shape)

        def down(name: str, width: int) -> jax.Array:
            biased = c.bias or c.qkv_bias
            zeros = nn.initializers.zeros
            bias = self.param(f"{name}_bias", zeros, (width,)) if biased else None
            return ops.linear(x_BTD, matrix(name, D, width), bias)

        def normed(name: str, x: jax.Array) -> jax.Array:
            scale = self.param(name, nn.initializers.ones, (x.shape[-1],))
            return ops.rms_norm(x, scale, eps=self.epsilon)

        if self.q_rank:
            q_BTQ = normed("q_norm", down("q_down", self.q_rank))
            q_BTNA = ops.linear(q_BTQ, matrix("q_up", self.q_rank, N, H + P))
        else:
            q_BTNA = ops.linear(x_BTD, matrix("q", D, N, H + P))
        q_BTNA = jnp.concatenate([q_BTNA[..., :H], turn(q_BTNA[..., H:])], axis=-1)
        c_BTR, k_rope_BTP = jnp.split(down("kv_down", self.kv_rank + P), (self.kv_rank,), axis=-1)
        c_BTR = normed("kv_norm", c_BTR)
        return q_BTNA, c_BTR[:, :, None], turn(k_rope_BTP[:, :, None])
