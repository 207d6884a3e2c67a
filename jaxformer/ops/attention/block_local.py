"""Attention within blocks of the line, and to a few blocks before (exact, O(T block)).

Blocks alone: Qiu et al., 2020 (BlockBERT), section 3, without its permutations; where the mask is
causal, the chunked attention of Llama 4 (Meta, 2025). With one block back: the local attention of
Roy et al., 2021 (Routing Transformer), section 4.1. The first block begins at key 0.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import scores
from jaxformer.ops.attention.banded import banded, check
from jaxformer.ops.attention.chunked import attend
from jaxformer.ops.indices import Index, as_array
from jaxformer.ops.masks import Mask, pytree

# Small blocks are computed several at once, as many as make this number of queries.
QUERY_CHUNK = 128
# Blocks beyond this are cut by the chunked backend, which skips what a causal mask hides.
LARGE_BLOCK = 256


def block_local(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    block: int,
    look_back: int = 0,
    offset: int | jax.Array = 0,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax over the keys of each query's block and of those right before, in O(T block) time.

    Args:
      q_BTNH: queries; query t stands at key t + offset.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      block: keys of a block; the last one may be short.
      look_back: how many earlier blocks are seen whole.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.
      mask: further restricts who sees whom; a spec of `masks`, or None. `masks.causal()` makes it
        causal.
      bias: as in `attention`.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      soft_cap: as in `attention`.
      dropout_rate: static probability of dropping a weight.
      key: random key, needed if dropout_rate > 0.
      return_weights: return the weights, before dropout, too: float32 [B, N, T, S], at O(T S).

    Returns:
      out_BTNH in the dtype of the queries, exactly 0 where nothing is seen; or (out, weights).

    Raises:
      ValueError: a block of no keys, shapes that do not fit, or dropout without a key.
    """
    check("block_local", q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key)
    if block < 1 or look_back < 0:
        raise ValueError(
            f"block_local: block must be >= 1 and look_back >= 0, not {block} and {look_back}"
        )
    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    if isinstance(scale, jax.Array):
        q_BTNH, scale = (q_BTNH * scale).astype(q_BTNH.dtype), 1.0
    local, bias = Local(block, look_back, offset), scores.as_bias(bias)
    seen = local if mask is None else mask & local
    options: dict[str, Any] = {
        "mask": seen,
        "bias": bias,
        "scale": 1.0 / math.sqrt(H) if scale is None else scale,
        "soft_cap": soft_cap,
    }
    dropped: dict[str, Any] = {
        "dropout_rate": dropout_rate,
        "key": key if dropout_rate > 0.0 else None,
    }
    if isinstance(offset, int) and block > LARGE_BLOCK and T > 1:
        out_BTNH, lse_BNT = attend(
            q_BTNH, k_BSKH, v_BSKH, query_chunk=None, key_chunk=None, **options, **dropped
        )
    else:
        chunk = min(block * max(1, QUERY_CHUNK // block), T)
        # A chunk that does not begin with a block may hold a part of one more.
        aligned = isinstance(offset, int) and offset % block == 0 and chunk % block == 0
        blocks = -(-chunk // block) if aligned or chunk == 1 else -(-(chunk - 1) // block) + 1
        start_i = ((jnp.arange(0, T, chunk) + offset) // block - look_back) * block
        out_BTNH, lse_BNT = banded(
            q_BTNH, k_BSKH, v_BSKH, start_i=start_i, width=(look_back + blocks) * block,
            query_chunk=chunk, **options, **dropped,
        )  # fmt: skip
    if not return_weights:
        return out_BTNH
    return out_BTNH, scores.weights(q_BTNH, k_BSKH, lse_BNT, **options)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Local(Mask):
    """Keys of the query's block, and of `look_back` blocks before it."""

    block_size: int
    look_back: int = 0
    offset: int | jax.Array = 0

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        q_block_t1 = (as_array(q_index_t)[:, None] + self.offset) // self.block_size
        back_ts = q_block_t1 - as_array(k_index_s)[None, :] // self.block_size
        return ((back_ts >= 0) & (back_ts <= self.look_back))[None, None]

    def range(self, q_start: int, q_stop: int, num_keys: int) -> tuple[int, int]:
        if not isinstance(self.offset, int):
            return 0, num_keys
        size = self.block_size
        first = (q_start + self.offset) // size - self.look_back
        return first * size, ((q_stop - 1 + self.offset) // size + 1) * size
