"""Layer and RMS normalisation with their parameters."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxformer import ops
from jaxformer.modules.config import TransformerConfig


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, by `config.norm`; statistics in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, width = self.config, x.shape[-1]
        plus_one = c.norm == "rms_norm_plus_one"
        start = nn.initializers.zeros if plus_one else nn.initializers.ones
        scale = self.param("scale", start, (width,)) if c.norm_scale else None
        if c.norm == "layer_norm":
            bias = self.param("bias", nn.initializers.zeros, (width,)) if c.norm_bias else None
            return ops.layer_norm(x, scale, bias, eps=c.norm_epsilon)
        return ops.rms_norm(x, scale, eps=c.norm_epsilon, offset=float(plus_one))
