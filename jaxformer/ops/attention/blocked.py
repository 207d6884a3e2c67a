"""Dense attention as CPUs like it: the plain case, with every matmul in its fast orientation.

It computes what `dense` computes, without bias, soft cap, dropout or returned weights, and its
gradient is written out. Three things make it fast under XLA on a CPU. The weights are kept in the
operands' dtype and never transposed: where the gradient contracts over queries, the small operand
is transposed instead and the result comes out as [H, S]. A transposed operand is made to have the
default layout, for XLA computes bf16 matmuls of any other layout in float32. And queries are cut
into blocks that see only the keys their mask may allow.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, t and s the
queries and keys of one block; Q = G·T and q = G·t: the queries of all heads that share keys.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.masks import Mask


class _Block(NamedTuple):
    """Queries [start, stop) and the keys [lo, hi) that they may see."""

    start: int
    stop: int
    lo: int
    hi: int


def blocked(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    *,
    mask: Mask | None,
    scale: float,
    query_chunk: int | None = None,
) -> Array:
    """See `jaxformer.ops.attention.attention`; no bias, soft cap, dropout or weights.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, in the queries' dtype.
      v_BSKH: values, in the queries' dtype.
      mask: a spec of `masks`, or None.
      scale: multiplies the logits.
      query_chunk: queries of one block, where the mask spares blocks some keys; None: 128, or an
        eighth of all.

    Returns:
      out_BTNH in the queries' dtype.
    """
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    size = max(128, -(-T // 8)) if query_chunk is None else query_chunk
    return _attend(tuple(_cut(mask, T, S, size)), scale, q_BTNH, k_BSKH, v_BSKH, mask)


def _cut(mask: Mask | None, T: int, S: int, size: int) -> list[_Block]:
    spans = [(start, min(start + size, T)) for start in range(0, T, size)]
    ranges = [masks.key_range(mask, *span, S) for span in spans]
    if all(keys == (0, S) for keys in ranges):
        return [_Block(0, T, 0, S)]
    # Queries that see nothing get some keys all the same: the mask hides them, the result is 0.
    return [_Block(*s, *((0, S) if r[0] == r[1] else r)) for s, r in zip(spans, ranges)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(blocks, scale, q_BTNH, k_BSKH, v_BSKH, mask) -> Array:
    return _forward(blocks, scale, q_BTNH, k_BSKH, v_BSKH, mask)[0]


def _forward(blocks, scale, q_BTNH, k_BSKH, v_BSKH, mask):
    (B, T, N, H), K, dtype = q_BTNH.shape, k_BSKH.shape[2], q_BTNH.dtype
    accumulate = jnp.promote_types(dtype, jnp.float32)
    q_BKGTH = _rows(_scaled(q_BTNH, scale), K)
    k_BKSH, v_BKSH = _heads_first(k_BSKH), _heads_first(v_BSKH)
    outs, kept = [], []
    for block in blocks:
        q_BKqH = _join(q_BKGTH[:, :, :, block.start : block.stop])
        logits_BKqs = scores.dot(q_BKqH, k_BKSH[:, :, block.lo : block.hi], transposed=True)
        logits_BKqs = _mask(logits_BKqs, mask, block, N)
        p_BKqs, total_BKq = scores.softmax(logits_BKqs)
        inverse_BKq1 = 1.0 / total_BKq[..., None]
        p_BKqs = p_BKqs.astype(dtype)
        out_BKqH = scores.dot(p_BKqs, v_BKSH[:, :, block.lo : block.hi]) * inverse_BKq1
        outs.append(out_BKqH.astype(dtype).reshape(B, K, N // K, -1, H))
        kept.append((p_BKqs, inverse_BKq1.astype(accumulate)))
    out_BKGTH = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
    out_BTNH = out_BKGTH.reshape(B, N, T, H).swapaxes(1, 2)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, mask, out_BKGTH, kept)


def _backward(blocks, scale, residuals, g_BTNH):
    q_BTNH, k_BSKH, v_BSKH, _, out_BKGTH, kept = residuals
    (B, T, N, H), (S, K), dtype = q_BTNH.shape, k_BSKH.shape[1:3], q_BTNH.dtype
    accumulate = jnp.promote_types(dtype, jnp.float32)
    g_BKGTH, q_BKGTH = _rows(g_BTNH.astype(dtype), K), _rows(_scaled(q_BTNH, scale), K)
    k_BKSH, v_BKSH = _heads_first(k_BSKH), _heads_first(v_BSKH)
    # The softmax's gradient takes from each row its mean, sum_s p dp = sum_h out g.
    mean_BKGT1 = jnp.sum(g_BKGTH.astype(accumulate) * out_BKGTH, axis=-1, keepdims=True)
    d_q, d_k_BKHS, d_v_BKHS = [], None, None
    for block, (p_BKqs, inverse_BKq1) in zip(blocks, kept):
        rows, keys = slice(block.start, block.stop), slice(block.lo, block.hi)
        # p is not divided by its sum; g and the mean are.
        g_BKqH = (_join(g_BKGTH[:, :, :, rows]) * inverse_BKq1).astype(dtype)
        mean_BKq1 = _join(mean_BKGT1[:, :, :, rows]) * inverse_BKq1
        d_p_BKqs = scores.dot(g_BKqH, v_BKSH[:, :, keys], transposed=True)
        d_logits_BKqs = (p_BKqs * (d_p_BKqs - mean_BKq1)).astype(dtype)
        d_q.append(
            (scores.dot(d_logits_BKqs, k_BKSH[:, :, keys]) * scale).reshape(B, K, N // K, -1, H)
        )
        q_BKHq = scores.transposed(_join(q_BKGTH[:, :, :, rows]), (0, 1, 3, 2))
        g_BKHq = scores.transposed(g_BKqH, (0, 1, 3, 2))
        d_k_BKHS = _add(d_k_BKHS, scores.dot(q_BKHq, d_logits_BKqs), block, S)
        d_v_BKHS = _add(d_v_BKHS, scores.dot(g_BKHq, p_BKqs), block, S)
    assert d_k_BKHS is not None and d_v_BKHS is not None  # there is at least one block
    d_q_BKGTH = d_q[0] if len(d_q) == 1 else jnp.concatenate(d_q, axis=3)
    d_q_BTNH = d_q_BKGTH.reshape(B, N, T, H).astype(dtype).swapaxes(1, 2)
    d_k_BSKH = d_k_BKHS.astype(k_BSKH.dtype).transpose(0, 3, 1, 2)
    return d_q_BTNH, d_k_BSKH, d_v_BKHS.astype(v_BSKH.dtype).transpose(0, 3, 1, 2), None


_attend.defvjp(_forward, _backward)


def _heads_first(x_BSKH: Array) -> Array:
    return scores.transposed(x_BSKH, (0, 2, 1, 3))


def _rows(x_BTNH: Array, num_kv_heads: int) -> Array:
    """Returns [B, K, G, T, H]."""
    B, T, N, H = x_BTNH.shape
    return _heads_first(x_BTNH).reshape(B, num_kv_heads, N // num_kv_heads, T, H)


def _join(x_BKGtH: Array) -> Array:
    """Returns [B, K, G·t, H]."""
    B, K, G, t, H = x_BKGtH.shape
    return x_BKGtH.reshape(B, K, G * t, H)


def _scaled(q_BTNH: Array, scale: float) -> Array:
    return (q_BTNH * jnp.asarray(scale, jnp.promote_types(q_BTNH.dtype, jnp.float32))).astype(
        q_BTNH.dtype
    )


def _mask(logits_BKqs: Array, mask: Any, block: _Block, num_heads: int) -> Array:
    rows, keys = range(block.start, block.stop), range(block.lo, block.hi)
    mask_BNts = scores.mask_block(mask, rows, keys)
    if mask_BNts is None:
        return logits_BKqs
    B, K, _, s = logits_BKqs.shape
    logits_BKGts = logits_BKqs.reshape(B, K, num_heads // K, len(rows), s)
    return jnp.where(scores.split_heads(mask_BNts, K), logits_BKGts, -jnp.inf).reshape(
        logits_BKqs.shape
    )


def _add(total_BKHS: Array | None, part_BKHs: Array, block: _Block, S: int) -> Array:
    if (block.lo, block.hi) != (0, S):
        widths = ((0, 0), (0, 0), (0, 0), (block.lo, S - block.hi))
        part_BKHs = jnp.pad(part_BKHs, widths)
    return part_BKHs if total_BKHS is None else total_BKHS + part_BKHs
