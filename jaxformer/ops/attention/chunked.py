"""Attention in O(T) memory: online softmax over chunks of keys, and a backward that recomputes.

Forward (Milakov & Gimelshein, 2018; Rabe & Staats, 2021): a running maximum and sum per query,
while chunks of keys pass by. Backward (Dao et al., 2022, algorithm 4): only q, k, v, the output
and the log-sum-exp are kept; the weights of each block are computed again from them. Both skip the
chunks of keys that the mask surely excludes, and compile to one pair of loops whatever the length.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width,
t and s the queries and keys of one block, q = G·t. Queries are split into chunks i, keys into
chunks j. Heads come before time, so that every block's matmul runs in its fast orientation.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.dropout import dropout
from jaxformer.ops.masks import Mask

# On a CPU twice as fast as 128 x 128, over many shapes; a block takes half a megabyte a head, as do
# 2048 keys 64 wide.
QUERY_CHUNK, KEY_CHUNK = 512, 256


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
    options = {"mask": mask, "bias": bias, "scale": scale, "soft_cap": soft_cap}
    return out_BTNH, scores.weights(q_BTNH, k_BSKH, lse_BNT, **options)


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
    q_BKGTH = masks.lengthen(q_BTNH, 1, more_T).swapaxes(1, 2).reshape(B, K, N // K, more_T, H)
    k_BKSH = masks.lengthen(k_BSKH, 1, more_S).swapaxes(1, 2)
    v_BKSH = masks.lengthen(v_BSKH, 1, more_S).swapaxes(1, 2)
    setting = Setting(scale, soft_cap, dropout_rate, query_chunk, key_chunk)
    q_BKGTH, k_BKSH, v_BKSH, mask, bias = _vary_alike((q_BKGTH, k_BKSH, v_BKSH, mask, bias))
    out_BKGTH, lse_BKGT = _attend(setting, q_BKGTH, k_BKSH, v_BKSH, mask, bias, key)
    out_BTNH = out_BKGTH.reshape(B, N, more_T, H).swapaxes(1, 2)[:, :T]
    return out_BTNH, lse_BKGT.reshape(B, N, more_T)[:, :, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    setting: Setting,
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask: Mask | None,
    bias: Any,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    B, K, G, T, H = q_BKGTH.shape
    t = setting.query_chunk
    first_i, last_i = _key_chunks(setting, mask, T, k_BKSH.shape[2])

    def one_query_chunk(i):
        q_BKqH = _chunk(q_BKGTH, i, t, axis=3).reshape(B, K, G * t, H)

        def one_key_chunk(j, carry):
            out_BKGtH, top_BKGt, total_BKGt = carry
            k_BKsH, v_BKsH = (_chunk(x, j, setting.key_chunk, axis=2) for x in (k_BKSH, v_BKSH))
            raw_BKqs = setting.scale * scores.dot(q_BKqH, k_BKsH, transposed=True)
            indices = _indices(setting, i, j)
            logits_BKGts = scores.finish(
                raw_BKqs.reshape(B, K, G, t, -1),
                scores.bias_block(bias, *indices),
                scores.mask_block(mask, *indices),
                setting.soft_cap,
            )
            new_top_BKGt = jnp.maximum(top_BKGt, logits_BKGts.max(axis=-1))
            p_BKGts = jnp.exp(logits_BKGts - _finite(new_top_BKGt)[..., None])
            shrink_BKGt = jnp.exp(top_BKGt - _finite(new_top_BKGt))
            dropped_BKGts = _dropped(setting, key, i, j, p_BKGts).astype(v_BKsH.dtype)
            more_BKqH = scores.dot(dropped_BKGts.reshape(B, K, G * t, -1), v_BKsH)
            return (
                out_BKGtH * shrink_BKGt[..., None] + more_BKqH.reshape(out_BKGtH.shape),
                new_top_BKGt,
                total_BKGt * shrink_BKGt + p_BKGts.sum(axis=-1),
            )

        zero_BKGt = scores.zeros((B, K, G, t), q_BKGTH)
        start = (scores.zeros((B, K, G, t, H), q_BKGTH), zero_BKGt - jnp.inf, zero_BKGt)
        out_BKGtH, top_BKGt, total_BKGt = jax.lax.fori_loop(
            first_i[i], last_i[i], one_key_chunk, start
        )
        nothing_BKGt = total_BKGt == 0.0
        out_BKGtH = out_BKGtH / jnp.where(nothing_BKGt, 1.0, total_BKGt)[..., None]
        lse_BKGt = jnp.where(nothing_BKGt, -jnp.inf, top_BKGt + jnp.log(total_BKGt))
        return out_BKGtH.astype(q_BKGTH.dtype), lse_BKGt

    out_iBKGtH, lse_iBKGt = jax.lax.map(one_query_chunk, jnp.arange(T // t))
    return _unchunk(out_iBKGtH, 3), _unchunk(lse_iBKGt, 3)


def _attend_forward(setting, q_BKGTH, k_BKSH, v_BKSH, mask, bias, key):
    out_BKGTH, lse_BKGT = _attend(setting, q_BKGTH, k_BKSH, v_BKSH, mask, bias, key)
    return (out_BKGTH, lse_BKGT), (q_BKGTH, k_BKSH, v_BKSH, mask, bias, key, out_BKGTH, lse_BKGT)


def _attend_backward(setting, residuals, cotangents):
    q_BKGTH, k_BKSH, v_BKSH, mask, bias, key, out_BKGTH, lse_BKGT = residuals
    d_out_BKGTH, d_lse_BKGT = cotangents
    (B, K, G, T, H), S, dtype = q_BKGTH.shape, k_BKSH.shape[2], q_BKGTH.dtype
    first_i, last_i = _key_chunks(setting, mask, T, S)
    t = setting.query_chunk
    # The softmax's backward needs the sum over keys of p * dp per query, which is out . d_out; the
    # log-sum-exp's own cotangent enters at the same place.
    inner_BKGT = (out_BKGTH.astype(jnp.float32) * d_out_BKGTH.astype(jnp.float32)).sum(axis=-1)
    inner_BKGT = inner_BKGT - d_lse_BKGT
    lse_BKGT = _finite(lse_BKGT)

    def one_query_chunk(carry, i):
        q_BKqH, d_out_BKqH = (
            _chunk(x, i, t, axis=3).reshape(B, K, G * t, H) for x in (q_BKGTH, d_out_BKGTH)
        )
        q_BKHq, d_out_BKHq = (scores.transposed(x, (0, 1, 3, 2)) for x in (q_BKqH, d_out_BKqH))
        inner_BKGt, lse_BKGt = (_chunk(x, i, t, axis=3) for x in (inner_BKGT, lse_BKGT))

        def one_key_chunk(j, carry):
            d_q_BKqH, d_k_BKHS, d_v_BKHS, d_bias = carry
            k_BKsH, v_BKsH = (_chunk(x, j, setting.key_chunk, axis=2) for x in (k_BKSH, v_BKSH))
            raw_BKqs = setting.scale * scores.dot(q_BKqH, k_BKsH, transposed=True)
            indices = _indices(setting, i, j)
            mask_BNts = scores.mask_block(mask, *indices)
            logits_BKGts, finish_backward = jax.vjp(
                lambda raw, bias: scores.finish(raw, bias, mask_BNts, setting.soft_cap),
                raw_BKqs.reshape(B, K, G, t, -1),
                scores.bias_block(bias, *indices),
            )
            p_BKGts = jnp.exp(logits_BKGts - lse_BKGt[..., None])
            dropped_BKGts = _dropped(setting, key, i, j, p_BKGts).astype(dtype)
            d_p_BKqs = scores.dot(d_out_BKqH, v_BKsH, transposed=True)
            d_p_BKGts = _dropped(setting, key, i, j, d_p_BKqs.reshape(p_BKGts.shape))
            d_raw_BKGts, d_bias_BNts = finish_backward(
                p_BKGts * (d_p_BKGts - inner_BKGt[..., None])
            )
            d_raw_BKqs = (setting.scale * d_raw_BKGts).astype(dtype).reshape(raw_BKqs.shape)
            dropped_BKqs = dropped_BKGts.reshape(raw_BKqs.shape)
            return (
                d_q_BKqH + scores.dot(d_raw_BKqs, k_BKsH),
                _add_chunk(d_k_BKHS, scores.dot(q_BKHq, d_raw_BKqs), j),
                _add_chunk(d_v_BKHS, scores.dot(d_out_BKHq, dropped_BKqs), j),
                scores.add_bias_gradient(d_bias, bias, indices, d_bias_BNts),
            )

        start = (scores.zeros(q_BKqH.shape, q_BKGTH), *carry)
        d_q_BKqH, *carry = jax.lax.fori_loop(first_i[i], last_i[i], one_key_chunk, start)
        return tuple(carry), d_q_BKqH.astype(dtype).reshape(B, K, G, t, H)

    zeros_BKHS = scores.zeros((B, K, H, S), q_BKGTH)
    start = (zeros_BKHS, zeros_BKHS, scores.no_bias_gradient(bias))
    (d_k_BKHS, d_v_BKHS, d_bias), d_q_iBKGtH = jax.lax.scan(
        one_query_chunk, start, jnp.arange(T // t)
    )
    return (
        _unchunk(d_q_iBKGtH, 3),
        d_k_BKHS.astype(k_BKSH.dtype).swapaxes(2, 3),
        d_v_BKHS.astype(v_BKSH.dtype).swapaxes(2, 3),
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


def _indices(setting: Setting, i: jax.Array, j: jax.Array) -> tuple[masks.Run, masks.Run]:
    t, s = setting.query_chunk, setting.key_chunk
    return masks.Run(i * t, t), masks.Run(j * s, s)


def _dropped(setting: Setting, key: jax.Array | None, i, j, x_BKGts: jax.Array) -> jax.Array:
    """Drops by a key of the block, so that the backward drops the same."""
    if key is None:
        return x_BKGts
    block_key = jax.random.fold_in(jax.random.fold_in(key, i), j)
    return dropout(x_BKGts, setting.dropout_rate, block_key)


def _chunk(x: jax.Array, index: jax.Array, size: int, *, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _unchunk(x: jax.Array, axis: int) -> jax.Array:
    """Joins the leading axis of chunks with the axis (of one chunk) that was cut."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _add_chunk(total_BKHS: jax.Array, more_BKHs: jax.Array, j: jax.Array) -> jax.Array:
    size = more_BKHs.shape[3]
    more_BKHs = _chunk(total_BKHS, j, size, axis=3) + more_BKHs
    return jax.lax.dynamic_update_slice_in_dim(total_BKHS, more_BKHs, j * size, axis=3)


def _finite(x: jax.Array) -> jax.Array:
    """A row that sees nothing has maximum and log-sum-exp -inf; shift it by 0 instead."""
    return jnp.where(x == -jnp.inf, 0.0, x)


def _vary_alike(tree: Any) -> Any:
    """Inside shard_map, marks all arrays as varying over the same mesh axes; else does nothing."""
    axes = frozenset().union(*(scores.varying_axes(x) for x in jax.tree.leaves(tree)))
    return jax.tree.map(lambda x: scores.vary(x, axes), tree)
