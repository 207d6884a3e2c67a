"""The embedding of tokens, and what a family's position scheme adds to it or to attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules import initial, variants
from jaxformer.modules.attention import Rotary
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.norm import Norm
from jaxformer.parallel.rules import gather_width


class Embed(nn.Module):
    """Token embeddings plus absolute positions and token types, where the family has them."""

    config: TransformerConfig
    num_token_types: int = 0

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        token_types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns x_BTD in the compute dtype."""
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        start = initial.table(c)
        E = c.embedding_size or c.width
        table_VD = self.param("tokens", start, (c.vocab_size, E))
        scale = E**0.5 if c.embed_scale else None
        x_BTD = ops.embed(tokens_BT, gather_width(table_VD), scale=scale, dtype=dtype)
        if c.positions == "learned":
            table_PD = self.param("positions", start, (c.max_length + c.position_offset, E))
            rows_BT = positions_BT + c.position_offset
            x_BTD = x_BTD + ops.embed(rows_BT, gather_width(table_PD), dtype=dtype)
        elif c.positions.startswith("sinusoidal"):
            interleaved = c.positions.endswith("interleaved")
            waves_BTD = ops.sinusoidal(positions_BT, E, interleaved=interleaved)
            x_BTD = x_BTD + waves_BTD.astype(dtype)
        if self.num_token_types:
            table_UD = self.param("token_types", start, (self.num_token_types, E))
            types_BT = jnp.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
            x_BTD = x_BTD + ops.embed(types_BT, gather_width(table_UD), dtype=dtype)
        if c.embed_norm:
            x_BTD = Norm(c, name="norm")(x_BTD)
        x_BTD = ops.dropout(x_BTD, c.dropout, key)
        if c.embedding_size:
            kernel_ED = self.param("projection", initial.inner(c, E), (E, c.width))
            offset_D = self.param("projection_bias", initial.zeros, (c.width,))
            x_BTD = ops.linear(x_BTD, kernel_ED, offset_D)
        return x_BTD


class RelativePositions(nn.Module):
    """The bias that ALiBi and T5 add to attention's logits; T5's table is shared by all layers."""

    config: TransformerConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, offset: int | jax.Array = 0):
        """Returns the bias spec, or None; `offset` is the index of query 0 among the keys."""
        c = self.config
        if c.positions == "alibi":
            return ops.alibi(c.num_heads, offset=offset)
        if c.positions == "t5":
            shape = (c.relative_buckets, c.num_heads)
            table_UN = self.param("relative_bias", nn.initializers.normal(c.init_std), shape)
            return ops.t5_relative_bias(
                table_UN,
                bidirectional=self.bidirectional,
                max_distance=c.relative_max_distance,
                offset=offset,
            )
        return None


def rotary(config: TransformerConfig, positions_BT: jax.Array, kind: str = "global"):
    """Returns RoPE's inputs for these positions, or None where the family has no RoPE.

    `kind` is the layer's: local layers may have a base of their own, which is never stretched.
    """
    if not config.positions.startswith("rope"):
        return None
    width = variants.rotary_width(config)
    if kind == "local" and config.rope_local_base:
        frequencies, factor = ops.rope_frequencies(width, config.rope_local_base)
        return Rotary(positions_BT, frequencies, factor)
    low, high = config.rope_frequency_factors
    frequencies, factor = ops.rope_frequencies(
        width,
        config.rope_base,
        scaling=config.rope_scaling,
        factor=config.rope_scaling_factor,
        original_length=config.rope_original_length or config.max_length,
        low_frequency_factor=low,
        high_frequency_factor=high,
    )
    return Rotary(positions_BT, frequencies, factor)
