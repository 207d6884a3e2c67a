"""Longformer's attention: a window, and a few global tokens that see all and are seen by all.

Beltagy et al., 2020, section 3.1. Global tokens have projections of their own: with these they read
the whole line. The other tokens see the global ones, with the usual projections, in one softmax
with their window; a global token inside the window counts once. The cost is O(T (w + E)).

Shapes: B batch, T queries, S keys, E global tokens at most, N heads, K key/value heads, H width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.attention.api import attention
from jaxformer.ops.attention.banded import Extra, banded, check
from jaxformer.ops.attention.sliding_window import QUERY_CHUNK, Near
from jaxformer.ops.indices import Index, as_array, take
from jaxformer.ops.masks import Mask, pytree


def longformer(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int,
    is_global_BS: jax.Array | None = None,
    max_global: int = 0,
    global_q_BTNH: jax.Array | None = None,
    global_k_BSKH: jax.Array | None = None,
    global_v_BSKH: jax.Array | None = None,
    offset: int | jax.Array = 0,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax over a window and the global tokens; global tokens attend to all (section 3.1).

    Args:
      q_BTNH: queries; query t stands at key t + offset.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      window: keys seen on both sides together, half of them on each, besides the query's own.
      is_global_BS: bool, which tokens are global; None for none.
      max_global: E, static: the most global tokens of a row. A row that has more becomes NaN, or
        raises where the number is known.
      global_q_BTNH: queries by the global projection; None: `q_BTNH`. Only global tokens use it.
      global_k_BSKH: keys that global tokens read; None: `k_BSKH`.
      global_v_BSKH: values that global tokens read; None: `v_BSKH`.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.
      mask: further restricts who sees whom, global or not; a spec of `masks`, or None. With
        `masks.causal()` a global token sees its past, and is seen by its future.
      bias: as in `attention`.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      soft_cap: as in `attention`.
      dropout_rate: static probability of dropping a weight.
      key: random key, needed if dropout_rate > 0.
      return_weights: return the weights, before dropout, too: float32 [B, N, T, S], at O(T S).

    Returns:
      out_BTNH in the dtype of the queries, exactly 0 where nothing is seen; or (out, weights).

    Raises:
      ValueError: an odd or negative window, shapes that do not fit, or more global tokens than
        max_global.
    """
    check("longformer", q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key)
    B, S = k_BSKH.shape[:2]
    if window < 0 or window % 2:
        raise ValueError(f"longformer: window has two sides, so it must be even, not {window}")
    if is_global_BS is not None and is_global_BS.shape != (B, S):
        raise ValueError(
            f"longformer: is_global must be bool {(B, S)}, as the keys, not {is_global_BS.shape}"
        )
    if isinstance(scale, jax.Array):
        scaled = [None if x is None else (x * scale).astype(x.dtype) for x in
                  (q_BTNH, global_q_BTNH)]  # fmt: skip
        (q_BTNH, global_q_BTNH), scale = scaled, 1.0
    options: dict[str, Any] = {
        "scale": 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale,
        "soft_cap": soft_cap,
    }
    dropped: dict[str, Any] = {
        "dropout_rate": dropout_rate,
        "key": key if dropout_rate > 0.0 else None,
    }
    bias = scores.as_bias(bias)
    chosen = None if is_global_BS is None else _choose(is_global_BS, min(max_global, S))
    result = _local(
        q_BTNH, k_BSKH, v_BSKH, window // 2, chosen, offset, mask, bias, options, dropped,
        return_weights,
    )  # fmt: skip
    if chosen is None or is_global_BS is None:
        return result if return_weights else result[0]
    if chosen.index_BE.shape[1]:
        global_q_BTNH = q_BTNH if global_q_BTNH is None else global_q_BTNH
        k = k_BSKH if global_k_BSKH is None else global_k_BSKH
        v = v_BSKH if global_v_BSKH is None else global_v_BSKH
        if dropout_rate > 0.0:
            dropped["key"] = jax.random.fold_in(key, -1)
        result = _overwrite_global(
            result, global_q_BTNH, k, v, chosen, offset, mask, bias, options | dropped
        )
    too_many_B = is_global_BS.sum(axis=1) > chosen.index_BE.shape[1]
    if not isinstance(too_many_B, jax.core.Tracer) and bool(too_many_B.any()):
        raise ValueError(
            f"longformer: a row has {int(is_global_BS.sum(axis=1).max())} global tokens, more than "
            f"max_global={max_global}"
        )
    nan = jnp.where(too_many_B, jnp.nan, 0.0)[:, None, None, None]
    out_BTNH = result[0] + nan.astype(result[0].dtype)
    return (out_BTNH, result[1]) if return_weights else out_BTNH


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """Which keys are global: their places, S where there are fewer, and the same as bool."""

    index_BE: jax.Array
    is_global_BS: jax.Array

    def gather(self, x_BSKH: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, index_E: jnp.take(x, index_E, axis=0, mode="clip"))(
            x_BSKH, self.index_BE
        )


def _choose(is_global_BS: jax.Array, size: int) -> Chosen:
    S = is_global_BS.shape[1]
    is_global_BS = is_global_BS.astype(bool)
    find = jax.vmap(lambda x: jnp.nonzero(x, size=size, fill_value=S)[0].astype(jnp.int32))
    return Chosen(find(is_global_BS), is_global_BS)


def _local(q, k, v, side, chosen, offset, mask, bias, options, dropped, return_weights):
    """Returns (out_BTNH, weights_BNTS or None) of all tokens as if none were a global query."""
    T = q.shape[1]
    near = Near(side, 0 if masks.is_causal(mask) else side, 1, offset)
    seen, extra = near if mask is None else mask & near, None
    if chosen is not None:
        seen = seen & Keys(~chosen.is_global_BS)
        index_BE = chosen.index_BE
        visible = OfRows(mask, keys_BE=index_BE, num_keys=k.shape[1])
        added = None if bias is None else OfRows(bias, keys_BE=index_BE, num_keys=k.shape[1])
        extra = Extra(chosen.gather(k), chosen.gather(v), visible, added)
    chunk = min(QUERY_CHUNK, T)
    out_BTNH, lse_BNT = banded(
        q, k, v, start_i=jnp.arange(0, T, chunk) + (offset - side),
        width=near.left + near.right + chunk, query_chunk=chunk, mask=seen, bias=bias, extra=extra,
        **options, **dropped,
    )  # fmt: skip
    if not return_weights:
        return out_BTNH, None
    every = near if chosen is None else near | Keys(chosen.is_global_BS)
    every = every if mask is None else mask & every
    return out_BTNH, scores.weights(q, k, lse_BNT, mask=every, bias=bias, **options)


def _overwrite_global(result, q_BTNH, k_BSKH, v_BSKH, chosen, offset, mask, bias, options):
    """Returns the result with the rows of global tokens, which attend to all."""
    out_BTNH, weights_BNTS = result
    T = q_BTNH.shape[1]
    row_BE = chosen.index_BE - offset
    # Rows that are not among these queries are computed for nothing, and dropped.
    row_BE = jnp.where((row_BE >= 0) & (chosen.index_BE < k_BSKH.shape[1]), row_BE, T)
    q_BENH = jax.vmap(lambda q, row_E: jnp.take(q, row_E, axis=0, mode="clip"))(q_BTNH, row_BE)
    got = attention(
        q_BENH, k_BSKH, v_BSKH,
        mask=None if mask is None else OfRows(mask, queries_BE=row_BE),
        bias=None if bias is None else OfRows(bias, queries_BE=row_BE),
        return_weights=weights_BNTS is not None, **options,
    )  # fmt: skip
    global_BENH, global_BNES = (got, None) if weights_BNTS is None else got

    def put(x, row_E, new):
        return x.at[row_E].set(new.astype(x.dtype), mode="drop")

    out_BTNH = jax.vmap(put)(out_BTNH, row_BE, global_BENH)
    if global_BNES is not None:
        at_time = jax.vmap(put)(weights_BNTS.swapaxes(1, 2), row_BE, global_BNES.swapaxes(1, 2))
        weights_BNTS = at_time.swapaxes(1, 2)
    return out_BTNH, weights_BNTS


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Keys(Mask):
    """Keys that may be seen."""

    seen_BS: jax.Array

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        seen_Bs = take(self.seen_BS, k_index_s, 1)
        shape = (seen_Bs.shape[0], 1, len(q_index_t), seen_Bs.shape[1])
        return jnp.broadcast_to(seen_Bs[:, None, None, :], shape)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class OfRows(Mask):
    """A mask, or a bias, asked about queries or keys that each row of the batch has its own of.

    An index counts these places; beyond num_keys, if that is given, nothing is seen.
    """

    whole: Any
    queries_BE: jax.Array | None = None
    keys_BE: jax.Array | None = None
    num_keys: int | None = None

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        q_t, k_s = as_array(q_index_t), as_array(k_index_s)
        leaves, tree = jax.tree.flatten(self.whole)
        given = self.keys_BE if self.queries_BE is None else self.queries_BE
        assert given is not None
        # A mask's arrays have rows in front, a bias array may, and what a bias learns has not.
        may = isinstance(self.whole, (Mask, scores.ArrayBias))
        own = [may and x.ndim > 0 and x.shape[0] == len(given) > 1 for x in leaves]

        def of_row(leaves, places_E):
            q = q_t if self.queries_BE is None else jnp.take(places_E, q_t, mode="clip")
            k = k_s if self.keys_BE is None else jnp.take(places_E, k_s, mode="clip")
            if self.whole is None:
                seen = jnp.ones((1, len(q), len(k)), bool)
            else:
                kept = [x[None] if o else x for x, o in zip(leaves, own, strict=True)]
                seen = tree.unflatten(kept).block(q, k)[0]
            if self.num_keys is not None and seen.dtype == jnp.bool_:
                seen = seen & (k < self.num_keys)[None, None, :]
            return seen

        return jax.vmap(of_row, ([0 if o else None for o in own], 0))(leaves, given)
