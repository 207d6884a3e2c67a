"""Attention weights of a few heads, queries and keys, exact, whatever computed the output.

A weight is exp(logit - log-sum-exp of its row) (Milakov & Gimelshein, 2018). So with the rows'
log-sum-exp, which every backend can return, any block of the T x S weights costs just its own size.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, n, t, s the chosen
heads, queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import scores
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask


def attention_weights(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    *,
    lse_BNT: jax.Array | None = None,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Returns the attention weights of the chosen heads, queries and keys, float32 [B, n, t, s].

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      lse_BNT: the rows' log-sum-exp, from `attention(..., return_lse=True)`; None: computed here,
        which needs all columns.
      heads: which, None for all.
      rows: which queries, None for all.
      columns: which keys, None for all.
      mask: as in `attention`.
      bias: as in `attention`.
      scale: as in `attention`.
      soft_cap: as in `attention`.

    Returns:
      Weights whose rows, over all columns, sum to 1, or to 0 where nothing is visible.

    Raises:
      ValueError: a head, row or column that is not there, or columns without lse_BNT.
    """
    (T, N, H), (S, K) = q_BTNH.shape[1:], k_BSKH.shape[1:3]
    if columns is not None and lse_BNT is None:
        raise ValueError("attention_weights: a part of the columns needs lse_BNT, the rows' sums")
    n = _chosen("head", heads, N)
    t, s = _chosen("row", rows, T), _chosen("column", columns, S)
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    q_BtnH = q_BTNH[:, jnp.array(t)][:, :, jnp.array(n)] if rows or heads else q_BTNH
    k_BsnH = k_BSKH[:, jnp.array(s)] if columns is not None else k_BSKH
    k_BsnH = k_BsnH[:, :, jnp.array([head // (N // K) for head in n], jnp.int32)]
    logits_Bnts = scale * einsum("BtnH,BsnH->Bnts", q_BtnH, k_BsnH, out_dtype=jnp.float32)
    if soft_cap is not None:
        logits_Bnts = soft_cap * jnp.tanh(logits_Bnts / soft_cap)
    places = tuple(range(size) if given is None else jnp.array(index, jnp.int32)
                   for given, index, size in ((rows, t, T), (columns, s, S)))  # fmt: skip
    bias_BNts = scores.bias_block(scores.as_bias(bias), *places)
    if bias_BNts is not None:
        logits_Bnts += _of_heads(bias_BNts, n).astype(jnp.float32)
    mask_BNts = scores.mask_block(mask, *places)
    if mask_BNts is not None:
        logits_Bnts = jnp.where(_of_heads(mask_BNts, n), logits_Bnts, -jnp.inf)
    if lse_BNT is None:
        p_Bnts, total_Bnt = scores.softmax(logits_Bnts)
        return p_Bnts / total_Bnt[..., None]
    lse_Bnt = lse_BNT[:, jnp.array(n)][:, :, jnp.array(t)]
    return jnp.exp(logits_Bnts - jnp.where(lse_Bnt == -jnp.inf, 0.0, lse_Bnt)[..., None])


def _chosen(what: str, index: Sequence[int] | None, size: int) -> tuple[int, ...]:
    if index is None:
        return tuple(range(size))
    for i in index:
        if not 0 <= i < size:
            raise ValueError(f"attention_weights: there is no {what} {i}; valid: 0 to {size - 1}")
    return tuple(index)


def _of_heads(x_BNts: jax.Array, heads: tuple[int, ...]) -> jax.Array:
    return x_BNts if x_BNts.shape[1] == 1 else x_BNts[:, jnp.array(heads)]
