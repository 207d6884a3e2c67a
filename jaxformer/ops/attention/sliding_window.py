"""Attention to a window around each query: one- or two-sided, dilated, with sinks (exact, O(T w)).

Beltagy et al., 2020 (Longformer), section 3.1: a window, and one with gaps of size dilation. Xiao
et al., 2024 (StreamingLLM), section 3.2: the first keys, which attract what attention is left over,
stay visible. OpenAI, 2025 (gpt-oss), section 2.2: a learned logit of each head in the denominator
does the same.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, d the dilation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.attention.banded import Extra, banded, check
from jaxformer.ops.indices import Index, as_array, in_place
from jaxformer.ops.masks import Mask, pytree

# Queries of a chunk: fewer waste less at the window's ends, more make larger matmuls. Measured on
# a CPU, for windows of 32 to 1024.
QUERY_CHUNK = 128


def sliding_window(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    left: int,
    right: int = 0,
    dilation: int = 1,
    sinks: int = 0,
    sink_logits_N: jax.Array | None = None,
    offset: int | jax.Array = 0,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    query_chunk: int | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax over the keys near each query, in O(T (left + right)) time and O(T) memory.

    Query t stands at key t + offset = p, and sees keys p - left * dilation, ..., p - dilation, p,
    ..., p + right * dilation. With right = 0 it is causal.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      left: keys seen before the query's own; 0 or more, and more than there are is no mistake.
      right: keys seen after it.
      dilation: distance between two of them. It costs nothing where every query has its own key
        (T = S and offset 0, or T = 1), and elsewhere as much as the window without gaps.
      sinks: so many keys at the beginning of the line are seen too, as far as `mask` allows: with
        segments, by the line's first segment; they are causal only if `mask` is.
      sink_logits_N: joins the softmax of each head as one more logit, without a value.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.
      mask: further restricts who sees whom; a spec of `masks`, or None.
      bias: as in `attention`.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      soft_cap: as in `attention`.
      dropout_rate: static probability of dropping a weight.
      key: random key, needed if dropout_rate > 0.
      query_chunk: queries of one chunk; None: measured.
      return_weights: return the weights, before dropout, too: float32 [B, N, T, S], at O(T S).

    Returns:
      out_BTNH in the dtype of the queries, exactly 0 where nothing is seen; or (out, weights). With
      sink_logits_N the weights' rows sum to less than 1.

    Raises:
      ValueError: a negative width, shapes that do not fit, or dropout without a key.
    """
    check("sliding_window", q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key)
    T, S, H = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[-1]
    if min(left, right, sinks) < 0 or dilation < 1:
        raise ValueError(
            f"sliding_window: left, right and sinks must be >= 0 and dilation >= 1, not {left}, "
            f"{right}, {sinks} and {dilation}"
        )
    if isinstance(scale, jax.Array):
        q_BTNH, scale = (q_BTNH * scale).astype(q_BTNH.dtype), 1.0
    near, bias = Near(left, right, dilation, offset), scores.as_bias(bias)
    options: dict[str, Any] = {
        "scale": 1.0 / math.sqrt(H) if scale is None else scale, "soft_cap": soft_cap,
    }  # fmt: skip
    dropped = {"dropout_rate": dropout_rate, "key": key if dropout_rate > 0.0 else None}
    chunk = min(query_chunk or QUERY_CHUNK, T)
    reach = _dilated if dilation > 1 and T > 1 and in_place(T, S, offset) else _near
    out_BTNH, lse_BNT = reach(
        q_BTNH, k_BSKH, v_BSKH, near, min(sinks, S), mask, bias, chunk, **options, **dropped
    )
    weights_BNTS = None
    if return_weights:
        seen = near | masks.sinks(sinks) if sinks else near
        seen = seen if mask is None else mask & seen
        weights_BNTS = scores.weights(q_BTNH, k_BSKH, lse_BNT, mask=seen, bias=bias, **options)
    if sink_logits_N is not None:
        share_BNT = jax.nn.sigmoid(lse_BNT - sink_logits_N.astype(jnp.float32)[:, None])
        out_BTNH = (out_BTNH * share_BNT.swapaxes(1, 2)[..., None]).astype(out_BTNH.dtype)
        weights_BNTS = None if weights_BNTS is None else weights_BNTS * share_BNT[..., None]
    return out_BTNH if weights_BNTS is None else (out_BTNH, weights_BNTS)


def _near(q_BTNH, k_BSKH, v_BSKH, near, sinks, mask, bias, chunk, **options):
    """Returns (out_BTNH, lse_BNT) of a window without gaps (or with, for one query)."""
    T, d = q_BTNH.shape[1], near.dilation
    seen = near if mask is None else mask & near
    extra = None
    if sinks:
        seen = seen & From(sinks)
        extra = Extra(k_BSKH[:, :sinks], v_BSKH[:, :sinks], mask, bias)
    first_i = jnp.arange(0, T, chunk) + (near.offset - near.left * d)
    return banded(
        q_BTNH, k_BSKH, v_BSKH, start_i=first_i, width=(near.left + near.right) * d + chunk,
        query_chunk=chunk, mask=seen, bias=bias, extra=extra, **options,
    )  # fmt: skip


def _dilated(q_BTNH, k_BSKH, v_BSKH, near, sinks, mask, bias, chunk, **options):
    """Returns (out_BTNH, lse_BNT): d interleaved lines, one after the other in the batch."""
    (B, T, N, H), d = q_BTNH.shape, near.dilation
    more_T = -(-T // d) * d
    real = masks.lengths(jnp.full((1,), T, jnp.int32))
    mask = None if mask is None and more_T == T else real if mask is None else mask & real
    mask = None if mask is None else mask.padded(more_T, more_T)
    bias = scores.padded_bias(bias, more_T, more_T)

    def fold(x_BTNH: jax.Array) -> jax.Array:
        x = masks.lengthen(x_BTNH, 1, more_T).reshape(B, more_T // d, d, *x_BTNH.shape[2:])
        return x.swapaxes(1, 2).reshape(B * d, more_T // d, *x_BTNH.shape[2:])

    q, k, v = (fold(x) for x in (q_BTNH, k_BSKH, v_BSKH))
    plain = dataclasses.replace(near, dilation=1)
    seen = plain if mask is None else Folded(mask, d, B) & plain
    added = None if bias is None else Folded(bias, d, B)
    extra = None
    if sinks:
        seen = seen & FoldedFrom(sinks, d, B)
        sink_k, sink_v = (jnp.repeat(x[:, :sinks], d, axis=0) for x in (k_BSKH, v_BSKH))
        of_mask, of_bias = (None if x is None else FoldedQueries(x, d, B) for x in (mask, bias))
        extra = Extra(sink_k, sink_v, of_mask, of_bias)
    chunk = min(chunk, q.shape[1])
    out, lse = banded(
        q, k, v, start_i=jnp.arange(0, q.shape[1], chunk) - near.left,
        width=near.left + near.right + chunk, query_chunk=chunk, mask=seen, bias=added, extra=extra,
        **options,
    )  # fmt: skip
    out_BTNH = out.reshape(B, d, -1, N, H).swapaxes(1, 2).reshape(B, more_T, N, H)[:, :T]
    lse_BNT = jnp.moveaxis(lse.reshape(B, d, N, -1), 1, 3).reshape(B, N, more_T)[:, :, :T]
    return out_BTNH, lse_BNT


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Near(Mask):
    """The window, with its gaps."""

    left: int
    right: int
    dilation: int = 1
    offset: int | jax.Array = 0

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        far_ts = as_array(k_index_s)[None, :] - (as_array(q_index_t)[:, None] + self.offset)
        d = self.dilation
        near_ts = (far_ts >= -self.left * d) & (far_ts <= self.right * d)
        return (near_ts if d == 1 else near_ts & (far_ts % d == 0))[None, None]

    def range(self, q_start: int, q_stop: int, num_keys: int) -> tuple[int, int]:
        if not isinstance(self.offset, int):
            return 0, num_keys
        d = self.dilation
        return q_start + self.offset - self.left * d, q_stop + self.offset + self.right * d


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class From(Mask):
    """Keys from this one on."""

    first: int

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        seen_1s = as_array(k_index_s)[None, :] >= self.first
        return jnp.broadcast_to(seen_1s, (len(q_index_t), len(k_index_s)))[None, None]


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Folded(Mask):
    """A mask or a bias as d interleaved lines see it: rows are [B, d], one after the other."""

    whole: Any
    dilation: int
    batch: int

    def places(self, index: Index, line: int) -> jax.Array:
        return as_array(index) * self.dilation + line

    def keys(self, index: Index, line: int) -> jax.Array:
        return self.places(index, line)

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        lines = [
            self.whole.block(self.places(q_index_t, line), self.keys(k_index_s, line))
            for line in range(self.dilation)
        ]
        x_dBNts = jnp.stack(lines)
        x_BdNts = jnp.broadcast_to(
            x_dBNts, (self.dilation, self.batch, *x_dBNts.shape[2:])
        ).swapaxes(0, 1)
        return x_BdNts.reshape(-1, *x_BdNts.shape[2:])


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class FoldedQueries(Folded):
    """The same where only the queries are interleaved."""

    def keys(self, index: Index, line: int) -> jax.Array:
        return as_array(index)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class FoldedFrom(Mask):
    """`From`, as interleaved lines see it."""

    first: int
    dilation: int
    batch: int

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return Folded(From(self.first), self.dilation, self.batch).block(q_index_t, k_index_s)
