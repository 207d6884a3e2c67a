"""Attention that holds the weights of a block of queries at once; the fastest for short texts.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width,
t and s the queries and keys of one block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.dropout import dropout
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

QUERY_CHUNK = 128


def dense(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask | None,
    bias: Any,
    scale: float,
    soft_cap: float | None,
    dropout_rate: float,
    key: jax.Array | None,
    query_chunk: int | None,
    return_weights: bool,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `jaxformer.ops.attention.attention`; `query_chunk` queries see only their key range."""
    (B, T, N, _), S, K = q_BTNH.shape, k_BSKH.shape[1], k_BSKH.shape[2]
    if T == 1 and S > 0:
        block = range(1), range(S)
        out_BNH, weights_BKGts = _attend_one(
            q_BTNH[:, 0], k_BSKH, v_BSKH,
            scores.bias_block(bias, *block), scores.mask_block(mask, *block),
            scale=scale, soft_cap=soft_cap, dropout_rate=dropout_rate, key=key,
        )  # fmt: skip
        out_BTNH = out_BNH[:, None].astype(q_BTNH.dtype)
        return (out_BTNH, weights_BKGts.reshape(B, N, 1, S)) if return_weights else out_BTNH
    q_BTKGH = q_BTNH.reshape(*q_BTNH.shape[:2], K, -1, q_BTNH.shape[-1])
    outs, weights = [], []
    for number, (start, stop, lo, hi) in enumerate(_blocks(mask, T, S, query_chunk)):
        out_BtKGH, weights_BKGts = _attend(
            q_BTKGH[:, start:stop],
            k_BSKH[:, lo:hi],
            v_BSKH[:, lo:hi],
            scores.bias_block(bias, range(start, stop), range(lo, hi)),
            scores.mask_block(mask, range(start, stop), range(lo, hi)),
            scale=scale,
            soft_cap=soft_cap,
            dropout_rate=dropout_rate,
            key=None if key is None else jax.random.fold_in(key, number),
        )
        outs.append(out_BtKGH)
        if return_weights:
            weights.append(jnp.pad(weights_BKGts, [(0, 0)] * 4 + [(lo, S - hi)]))
    out_BTNH = _join(outs, axis=1).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    if not return_weights:
        return out_BTNH
    weights_BKGTS = _join(weights, axis=3)
    return out_BTNH, weights_BKGTS.reshape(q_BTNH.shape[0], -1, T, S)


def _attend_one(
    q_BNH, k_BSKH, v_BSKH, bias_BNts, mask_BNts, *, scale, soft_cap, dropout_rate, key
) -> tuple[jax.Array, jax.Array]:
    """As `_attend`, for one query: returns (out_BNH, weights_BKGts), both float32.

    The matmuls see keys [C, S, H] and values [C, H, S], C = B * K: exactly as a cache for decoding
    lies in memory. Anything between the two, and XLA copies all of the cache at every token.
    """
    (B, N, H), (S, K) = q_BNH.shape, k_BSKH.shape[1:3]
    k_CSH = k_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)
    v_CHS = v_BSKH.transpose(0, 2, 3, 1).reshape(B * K, H, S)
    q_CGH = q_BNH.reshape(B * K, N // K, H)
    raw_CGS = scale * einsum("CGH,CSH->CGS", q_CGH, k_CSH, out_dtype=jnp.float32)
    raw_BKGts = raw_CGS.reshape(B, K, N // K, 1, S)
    logits_BKGts = scores.finish(raw_BKGts, bias_BNts, mask_BNts, soft_cap)
    p_BKGts, total_BKGt = scores.softmax(logits_BKGts)
    p_CGS = dropout(p_BKGts, dropout_rate, key).astype(v_CHS.dtype).reshape(B * K, N // K, S)
    out_CGH = einsum("CGS,CHS->CGH", p_CGS, v_CHS, out_dtype=jnp.float32)
    out_CGH = out_CGH / total_BKGt.reshape(B * K, N // K, 1)
    return out_CGH.reshape(B, N, H), p_BKGts / total_BKGt[..., None]


def _attend(
    q_BtKGH, k_BsKH, v_BsKH, bias_BNts, mask_BNts, *, scale, soft_cap, dropout_rate, key
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_BtKGH, weights_BKGts), both float32.

    The division by the softmax's denominator comes after the product with the values: it touches
    [t, H] numbers instead of [t, s], and so does its gradient.
    """
    logits_BKGts = scores.block_logits(
        q_BtKGH, k_BsKH, bias_BNts, mask_BNts, scale=scale, soft_cap=soft_cap
    )
    p_BKGts, total_BKGt = scores.softmax(logits_BKGts)
    dropped_BKGts = dropout(p_BKGts, dropout_rate, key).astype(v_BsKH.dtype)
    out_BtKGH = einsum("BKGts,BsKH->BtKGH", dropped_BKGts, v_BsKH, out_dtype=jnp.float32)
    out_BtKGH = out_BtKGH / jnp.moveaxis(total_BKGt, 3, 1)[..., None]
    return out_BtKGH, p_BKGts / total_BKGt[..., None]


def _blocks(
    mask: Mask | None, T: int, S: int, query_chunk: int | None
) -> list[tuple[int, int, int, int]]:
    """Returns (query start, stop, key start, stop) of each block; one block if none sees less."""
    # Each block is code to compile: no more than 16 of them, unless they are asked for.
    query_chunk = query_chunk or max(QUERY_CHUNK, -(-T // 16))
    blocks = [(start, min(start + query_chunk, T)) for start in range(0, T, query_chunk)]
    ranges = [masks.key_range(mask, *block, S) for block in blocks]
    if all(keys == (0, S) for keys in ranges) or len(blocks) == 1:
        return [(0, T, 0, S)]
    return [(*block, *keys) for block, keys in zip(blocks, ranges, strict=True)]


def _join(blocks: list[jax.Array], axis: int) -> jax.Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=axis)
