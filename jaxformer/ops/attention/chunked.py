"""Attention in O(T) memory: online softmax over chunks of keys, and a backward that recomputes.

Forward (Milakov & Gimelshein, 2018; Rabe & Staats, 2021): a running maximum and sum per query,
while chunks of keys pass by. Backward (Dao et al., 2022, algorithm 4): only q, k, v, the output
and the log-sum-exp are kept; the weights of each block are computed again from them. Both skip the
chunks of keys that the mask surely excludes, and compile to one pair of loops whatever the length.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width,
t and s the queries and keys of one block. Queries are split into chunks i, keys into chunks j.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.dropout import dropout
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

# A block of 128 x 128 float32 logits is 64 KB a head: it stays in the caches of a CPU.
QUERY_CHUNK, KEY_CHUNK = 128, 128


class Setting(NamedTuple):
    """What is known before compilation."""

    scale: float
    soft_cap: float | None
    dropout_rate: float
    query_chunk: int
    key_chunk: int


def chunked(
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
    key_chunk: int | None,
    return_weights: bool,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `jaxformer.ops.attention.attention`.

    The weights, where they are asked for, are exact: exp(logits - log-sum-exp). They cost O(T S).
    """
    out_BTNH, lse_BNT = attend(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        mask=mask,
        bias=bias,
        scale=scale,
        soft_cap=soft_cap,
        dropout_rate=dropout_rate,
        key=key,
        query_chunk=query_chunk,
        key_chunk=key_chunk,
    )
    if not return_weights:
        return out_BTNH
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    logits_BKGTS = scores.block_logits(
        q_BTNH.reshape(B, T, K, N // K, H),
        k_BSKH,
        scores.bias_block(bias, range(T), range(S)),
        scores.mask_block(mask, range(T), range(S)),
        scale=scale,
        soft_cap=soft_cap,
    )
    return out_BTNH, jnp.exp(logits_BKGTS.reshape(B, N, T, S) - _finite(lse_BNT)[..., None])


def attend(
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
    key_chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_BTNH, lse_BNT): both differentiable, so that partial results can be merged.

    lse is float32, the log of the softmax's denominator; -inf where nothing may be attended to.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    query_chunk, key_chunk = min(query_chunk or QUERY_CHUNK, T), min(key_chunk or KEY_CHUNK, S)
    more_T, more_S = -(-T // query_chunk) * query_chunk, -(-S // key_chunk) * key_chunk
    # Lengths that the chunks do not divide are padded; nobody sees the padding, and what padded
    # queries compute is cut off again.
    if more_S != S:
        real = masks.lengths(jnp.full((1,), S, jnp.int32))
        mask = real if mask is None else mask & real
    mask = None if mask is None else mask.padded(more_T, more_S)
    bias = scores.padded_bias(bias, more_T, more_S)
    q_BTKGH = masks.lengthen(q_BTNH, 1, more_T).reshape(B, more_T, K, N // K, H)
    k_BSKH, v_BSKH = masks.lengthen(k_BSKH, 1, more_S), masks.lengthen(v_BSKH, 1, more_S)
    setting = Setting(scale, soft_cap, dropout_rate, query_chunk, key_chunk)
    q_BTKGH, k_BSKH, v_BSKH, mask, bias = _vary_alike((q_BTKGH, k_BSKH, v_BSKH, mask, bias))
    out_BTKGH, lse_BKGT = _attend(setting, q_BTKGH, k_BSKH, v_BSKH, mask, bias, key)
    out_BTNH = out_BTKGH.reshape(B, more_T, N, H)[:, :T]
    return out_BTNH, lse_BKGT.reshape(B, N, more_T)[:, :, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    setting: Setting,
    q_BTKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask | None,
    bias: Any,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    first_i, last_i = _key_chunks(setting, mask, q_BTKGH.shape[1], k_BSKH.shape[1])
    B, T, K, G, H = q_BTKGH.shape
    t = setting.query_chunk

    def one_query_chunk(i):
        q_BtKGH = _chunk(q_BTKGH, i, t)

        def one_key_chunk(j, carry):
            out_BKGtH, top_BKGt, total_BKGt = carry
            k_BsKH, v_BsKH = (_chunk(x, j, setting.key_chunk) for x in (k_BSKH, v_BSKH))
            raw_BKGts = setting.scale * einsum(
                "BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH, out_dtype=jnp.float32
            )
            indices = _indices(setting, i, j)
            logits_BKGts = scores.finish(
                raw_BKGts,
                scores.bias_block(bias, *indices),
                scores.mask_block(mask, *indices),
                setting.soft_cap,
            )
            new_top_BKGt = jnp.maximum(top_BKGt, logits_BKGts.max(axis=-1))
            p_BKGts = jnp.exp(logits_BKGts - _finite(new_top_BKGt)[..., None])
            shrink_BKGt = jnp.exp(top_BKGt - _finite(new_top_BKGt))
            dropped_BKGts = _dropped(setting, key, i, j, p_BKGts).astype(v_BsKH.dtype)
            more_BKGtH = einsum("BKGts,BsKH->BKGtH", dropped_BKGts, v_BsKH, out_dtype=jnp.float32)
            return (
                out_BKGtH * shrink_BKGt[..., None] + more_BKGtH,
                new_top_BKGt,
                total_BKGt * shrink_BKGt + p_BKGts.sum(axis=-1),
            )

        zero_BKGt = scores.zeros((B, K, G, t), q_BTKGH)
        start = (scores.zeros((B, K, G, t, H), q_BTKGH), zero_BKGt - jnp.inf, zero_BKGt)
        out_BKGtH, top_BKGt, total_BKGt = jax.lax.fori_loop(
            first_i[i], last_i[i], one_key_chunk, start
        )
        nothing_BKGt = total_BKGt == 0.0
        out_BKGtH = out_BKGtH / jnp.where(nothing_BKGt, 1.0, total_BKGt)[..., None]
        lse_BKGt = jnp.where(nothing_BKGt, -jnp.inf, top_BKGt + jnp.log(total_BKGt))
        return jnp.moveaxis(out_BKGtH, 3, 1).astype(q_BTKGH.dtype), lse_BKGt

    out_iBtKGH, lse_iBKGt = jax.lax.map(one_query_chunk, jnp.arange(T // t))
    return _unchunk(out_iBtKGH, 1), _unchunk(lse_iBKGt, 3)


def _attend_forward(setting, q_BTKGH, k_BSKH, v_BSKH, mask, bias, key):
    out_BTKGH, lse_BKGT = _attend(setting, q_BTKGH, k_BSKH, v_BSKH, mask, bias, key)
    return (out_BTKGH, lse_BKGT), (q_BTKGH, k_BSKH, v_BSKH, mask, bias, key, out_BTKGH, lse_BKGT)


def _attend_backward(setting, residuals, cotangents):
    q_BTKGH, k_BSKH, v_BSKH, mask, bias, key, out_BTKGH, lse_BKGT = residuals
    d_out_BTKGH, d_lse_BKGT = cotangents
    first_i, last_i = _key_chunks(setting, mask, q_BTKGH.shape[1], k_BSKH.shape[1])
    t, dtype = setting.query_chunk, q_BTKGH.dtype
    # The softmax's backward needs the sum over keys of p * dp per query, which is out . d_out; the
    # log-sum-exp's own cotangent enters at the same place.
    inner_BTKG = (out_BTKGH.astype(jnp.float32) * d_out_BTKGH.astype(jnp.float32)).sum(axis=-1)
    inner_BKGT = jnp.moveaxis(inner_BTKG, 1, 3) - d_lse_BKGT
    lse_BKGT = _finite(lse_BKGT)

    def one_query_chunk(carry, i):
        q_BtKGH, d_out_BtKGH = (_chunk(x, i, t) for x in (q_BTKGH, d_out_BTKGH))
        inner_BKGt, lse_BKGt = (_chunk(x, i, t, axis=3) for x in (inner_BKGT, lse_BKGT))

        def one_key_chunk(j, carry):
            d_q_BtKGH, d_k_BSKH, d_v_BSKH, d_bias = carry
            k_BsKH, v_BsKH = (_chunk(x, j, setting.key_chunk) for x in (k_BSKH, v_BSKH))
            raw_BKGts = setting.scale * einsum(
                "BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH, out_dtype=jnp.float32
            )
            indices = _indices(setting, i, j)
            mask_BNts = scores.mask_block(mask, *indices)
            logits_BKGts, finish_backward = jax.vjp(
                lambda raw, bias: scores.finish(raw, bias, mask_BNts, setting.soft_cap),
                raw_BKGts,
                scores.bias_block(bias, *indices),
            )
            p_BKGts = jnp.exp(logits_BKGts - lse_BKGt[..., None])
            dropped_BKGts = _dropped(setting, key, i, j, p_BKGts).astype(dtype)
            more_v_BsKH = einsum(
                "BKGts,BtKGH->BsKH", dropped_BKGts, d_out_BtKGH, out_dtype=jnp.float32
            )
            d_p_BKGts = einsum("BtKGH,BsKH->BKGts", d_out_BtKGH, v_BsKH, out_dtype=jnp.float32)
            d_p_BKGts = _dropped(setting, key, i, j, d_p_BKGts)
            d_raw_BKGts, d_bias_BNts = finish_backward(
                p_BKGts * (d_p_BKGts - inner_BKGt[..., None])
            )
            d_raw_BKGts = (setting.scale * d_raw_BKGts).astype(dtype)
            more_k_BsKH = einsum("BKGts,BtKGH->BsKH", d_raw_BKGts, q_BtKGH, out_dtype=jnp.float32)
            more_q_BtKGH = einsum("BKGts,BsKH->BtKGH", d_raw_BKGts, k_BsKH, out_dtype=jnp.float32)
            return (
                d_q_BtKGH + more_q_BtKGH,
                _add_chunk(d_k_BSKH, more_k_BsKH, j),
                _add_chunk(d_v_BSKH, more_v_BsKH, j),
                scores.add_bias_gradient(d_bias, bias, indices, d_bias_BNts),
            )

        start = (scores.zeros(q_BtKGH.shape, q_BTKGH), *carry)
        d_q_BtKGH, *carry = jax.lax.fori_loop(first_i[i], last_i[i], one_key_chunk, start)
        return tuple(carry), d_q_BtKGH.astype(dtype)

    zeros_BSKH = scores.zeros(k_BSKH.shape, q_BTKGH)
    start = (zeros_BSKH, zeros_BSKH, scores.no_bias_gradient(bias))
    (d_k_BSKH, d_v_BSKH, d_bias), d_q_iBtKGH = jax.lax.scan(
        one_query_chunk, start, jnp.arange(q_BTKGH.shape[1] // t)
    )
    return (
        _unchunk(d_q_iBtKGH, 1),
        d_k_BSKH.astype(k_BSKH.dtype),
        d_v_BSKH.astype(v_BSKH.dtype),
        None,
        scores.bias_cotangent(bias, d_bias),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _key_chunks(setting: Setting, mask: Mask | None, T: int, S: int) -> tuple[jax.Array, jax.Array]:
    """Returns (first, last), int32 [T / query_chunk]: which key chunks each query chunk needs."""
    t, s = setting.query_chunk, setting.key_chunk
    ranges = [masks.key_range(mask, start, start + t, S) for start in range(0, T, t)]
    first = [lo // s for lo, _ in ranges]
    last = [lo // s if lo == hi else -(-hi // s) for lo, hi in ranges]
    return jnp.array(first, jnp.int32), jnp.array(last, jnp.int32)


def _indices(setting: Setting, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
    t, s = setting.query_chunk, setting.key_chunk
    return i * t + jnp.arange(t), j * s + jnp.arange(s)


def _dropped(setting: Setting, key: jax.Array | None, i, j, x_BKGts: jax.Array) -> jax.Array:
    """Drops by a key of the block, so that the backward drops the same."""
    if key is None:
        return x_BKGts
    block_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
    return dropout(x_BKGts, setting.dropout_rate, block_key)


def _chunk(x: jax.Array, index: jax.Array, size: int, axis: int = 1) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _unchunk(x: jax.Array, axis: int) -> jax.Array:
    """Joins the leading axis of chunks with the axis (of one chunk) that was cut."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _add_chunk(total: jax.Array, more: jax.Array, j: jax.Array) -> jax.Array:
    size = more.shape[1]
    more = _chunk(total, j, size) + more
    return jax.lax.dynamic_update_slice_in_dim(total, more, j * size, axis=1)


def _finite(x: jax.Array) -> jax.Array:
    """A row that sees nothing has maximum and log-sum-exp -inf; shift it by 0 instead."""
    return jnp.where(x == -jnp.inf, 0.0, x)


def _vary_alike(tree: Any) -> Any:
    """Inside shard_map, marks all arrays as varying over the same mesh axes; else does nothing."""
    axes = frozenset().union(*(scores.varying_axes(x) for x in jax.tree.leaves(tree)))
    return jax.tree.map(lambda x: scores.vary(x, axes), tree)
