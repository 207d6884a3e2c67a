"""What the dense and the chunked backend share: the logits of one block, masked.

Shapes: B batch, N heads, K key/value heads, G = N/K, H head width, t queries and s keys of a block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Index, Mask


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class ArrayBias:
    """An array that broadcasts to [B, N, T, S], with the interface of a bias spec."""

    bias_BNTS: jax.Array

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return masks.block_of_array(self.bias_BNTS, q_index_t, k_index_s)


def as_bias(bias: Any) -> Any:
    """Returns a bias spec for a spec, an array that broadcasts to [B, N, T, S], or None."""
    if bias is None or hasattr(bias, "block"):
        return bias
    return ArrayBias(masks.four_axes(jnp.asarray(bias), "bias"))


def block_logits(
    q_BtKGH: jax.Array,
    k_BsKH: jax.Array,
    bias_BNts: jax.Array | None,
    mask_BNts: jax.Array | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Returns float32 logits [B, K, G, t, s]: scaled, capped, biased, and -inf where masked.

    The order (cap, then bias, then mask) is that of Gemma 2 (Gemma Team, 2024, section 2).
    """
    logits_BKGts = scale * einsum("BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH, out_dtype=jnp.float32)
    if soft_cap is not None:
        logits_BKGts = soft_cap * jnp.tanh(logits_BKGts / soft_cap)
    if bias_BNts is not None:
        logits_BKGts += split_heads(bias_BNts, k_BsKH.shape[2]).astype(jnp.float32)
    if mask_BNts is not None:
        logits_BKGts = jnp.where(split_heads(mask_BNts, k_BsKH.shape[2]), logits_BKGts, -jnp.inf)
    return logits_BKGts


def split_heads(x_BNts: jax.Array, num_kv_heads: int) -> jax.Array:
    """Returns [B, K|1, G|1, t, s]: query head n belongs to key/value head n // G."""
    batch, heads, *rest = x_BNts.shape
    groups = (1, 1) if heads == 1 else (num_kv_heads, heads // num_kv_heads)
    return x_BNts.reshape(batch, *groups, *rest)


def mask_block(mask: Mask | None, q_index_t: Index, k_index_s: Index) -> jax.Array | None:
    """Returns the mask's block, or None for no mask."""
    return None if mask is None else mask.block(q_index_t, k_index_s)


def bias_block(bias: Any, q_index_t: Index, k_index_s: Index) -> jax.Array | None:
    """Returns the bias's block, or None for no bias."""
    return None if bias is None else bias.block(q_index_t, k_index_s)
