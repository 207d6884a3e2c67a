"""Chunked cross-attention: each chunk of a text reads what was found for the chunk before it.

Borgeaud et al. (2022), "Improving language models by retrieving from trillions of tokens", section
2.4 and figure 2. What is retrieved for a chunk depends on all its tokens, so it may be read from
the chunk's last token on (which predicts the first token of the next) and not before: the queries
of positions (u + 1) m - 1 ... (u + 2) m - 2 attend to the neighbours of chunk u = 0, 1, ...

Each chunk's queries and keys become a row of the batch of plain attention, so every backend does.

Shapes: B batch, T queries, L chunks of m tokens, S tokens retrieved for a chunk (its neighbours,
joined), N heads, K key/value heads, H head width, A chunks that have readers among the queries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention.api import attention
from jaxformer.ops.masks import Mask

_OF_PLACES = (masks.Causal, masks.Window, masks.Prefix, masks.Sinks)


def chunked_cross_attention(
    q_BTNH: jax.Array,
    k_BLSKH: jax.Array,
    v_BLSKH: jax.Array,
    *,
    chunk: int = 64,
    valid_BLS: jax.Array | None = None,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    key: jax.Array | None = None,
    dropout_rate: float = 0.0,
    backend: str = "auto",
    offset: int | jax.Array = 0,
    return_weights: bool = False,
) -> Any:
    """Attention of each token to what was retrieved for the last chunk that has ended (fig. 2).

    The first chunk - 1 tokens have nothing to read and get exactly 0, as have those whose chunk has
    no valid neighbour. It is causal: no token reads what was found with the help of a later one.

    Args:
      q_BTNH: queries; T need not be a multiple of `chunk`.
      k_BLSKH: keys of what was retrieved for each chunk of the text; K divides N.
      v_BLSKH: values, of the shape of the keys.
      chunk: tokens of a chunk (m; the paper: 64).
      valid_BLS: bool, which retrieved tokens exist; None: all.
      mask: a spec of `masks` over the queries and the S places of their own chunk's tokens. One
        that compares places (causal, window, prefix, sinks) is refused: a retrieved token has no
        place in the text.
      bias: added to the logits: an array that broadcasts to [B, N, T, S].
      scale: multiplies q k^T; 1/sqrt(H) if None.
      key: random key, needed if dropout_rate > 0.
      dropout_rate: static probability of dropping a weight.
      backend: as in `attention`.
      offset: the position of query 0 in the text; an int, or an int32 scalar (a cache index).
      return_weights: also return the weights.

    Returns:
      out_BTNH in the dtype of the queries, or (out_BTNH, weights_BNTS) with float32 weights over
      the tokens retrieved for the chunk that a query reads; rows sum to 1, or are 0.

    Raises:
      ValueError: shapes that do not fit, chunks that are read and have no neighbours, a mask or
        bias that compares places.
    """
    B, T, N, H = q_BTNH.shape
    _check(q_BTNH, k_BLSKH, v_BLSKH, chunk, valid_BLS, mask, bias, offset)
    L, S = k_BLSKH.shape[1:3]
    fold = _fold(T, chunk, offset)
    if not fold.count:
        out_BTNH = jnp.zeros_like(q_BTNH)
        weights_BNTS = jnp.zeros((B, N, T, S), jnp.float32)
        return (out_BTNH, weights_BNTS) if return_weights else out_BTNH
    valid_BLS = jnp.ones((B, L, S), bool) if valid_BLS is None else valid_BLS
    seen_bLS = fold.chunks(valid_BLS).reshape(B * fold.count, 1, 1, S)
    seen = masks.explicit(seen_bLS)
    if mask is not None:
        seen = seen & _Folded(mask, fold, B, T)
    result = attention(
        fold.queries(q_BTNH, 1).reshape(B * fold.count, fold.width, N, H),
        fold.chunks(k_BLSKH).reshape(B * fold.count, *k_BLSKH.shape[2:]),
        fold.chunks(v_BLSKH).reshape(B * fold.count, *v_BLSKH.shape[2:]),
        mask=seen, bias=_folded_bias(bias, fold, B), scale=scale, key=key,
        dropout_rate=dropout_rate, backend=backend, return_weights=return_weights,
    )  # fmt: skip
    out_RmNH, weights_RNmS = result if return_weights else (result, None)
    out_BTNH = fold.back(out_RmNH.reshape(B, fold.count, fold.width, N, H), T)
    if weights_RNmS is None:
        return out_BTNH
    weights_BAmNS = weights_RNmS.reshape(B, fold.count, N, fold.width, S).swapaxes(2, 3)
    return out_BTNH, fold.back(weights_BAmNS, T).swapaxes(1, 2)


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class _Fold:
    """How a line of queries becomes rows of `width`, each with the keys of one chunk.

    The line is cut so that row 0 reads chunk `first`; before its queries stand `before` empty
    places, or, if `before` is negative, so many queries are left out that read nothing. Of an
    offset that is traced both are traced, and no query is left out.
    """

    first: int | jax.Array
    count: int
    width: int
    before: int | jax.Array

    def queries(self, x: jax.Array, axis: int) -> jax.Array:
        """Returns `x` with `axis` cut into [count, width]; what it does not have is 0."""
        shape, room = x.shape, self.count * self.width
        if isinstance(self.before, int):
            x = jax.lax.slice_in_dim(x, max(-self.before, 0), shape[axis], axis=axis)
            ahead = max(self.before, 0)
            widths = [(0, 0)] * x.ndim
            widths[axis] = (ahead, room - ahead - x.shape[axis])
            x = jnp.pad(x, widths)
        else:
            empty = jnp.zeros((*shape[:axis], room, *shape[axis + 1 :]), x.dtype)
            x = jax.lax.dynamic_update_slice_in_dim(empty, x, self.before, axis)
        return x.reshape(*shape[:axis], self.count, self.width, *shape[axis + 1 :])

    def chunks(self, x_BL: jax.Array) -> jax.Array:
        """Returns the chunks that are read, [B, count, ...]; of validity, False for none."""
        if isinstance(self.first, int):
            return jax.lax.slice_in_dim(x_BL, self.first, self.first + self.count, axis=1)
        index_A = self.first + jnp.arange(self.count)
        taken = jnp.take(x_BL, index_A, axis=1, mode="clip")
        there_A = (index_A >= 0) & (index_A < x_BL.shape[1])
        return taken & there_A[:, None] if x_BL.dtype == jnp.bool_ else taken

    def back(self, x_BAm: jax.Array, length: int) -> jax.Array:
        """Returns the line [B, length, ...] again, with 0 for the queries that were left out."""
        B, A, m, *rest = x_BAm.shape
        x_BT = x_BAm.reshape(B, A * m, *rest)
        if not isinstance(self.before, int):
            return jax.lax.dynamic_slice_in_dim(x_BT, self.before, length, axis=1)
        missing = max(-self.before, 0)
        x_BT = x_BT[:, max(self.before, 0) :][:, : length - missing]
        return jnp.pad(x_BT, [(0, 0), (missing, 0)] + [(0, 0)] * len(rest))


def _fold(T: int, chunk: int, offset: int | jax.Array) -> _Fold:
    first, before = (offset + 1) // chunk - 1, (offset + 1) % chunk
    traced = not isinstance(offset, int)
    if T == 1 and (traced or first >= 0):  # a row of one query, wherever in its chunk it stands
        return _Fold(first, 1, 1, 0)
    if traced:
        return _Fold(first, -(-(T + chunk - 1) // chunk), chunk, before)
    if first < 0:  # the row before chunk 0 reads nothing
        first, before = 0, before - chunk
    return _Fold(first, (offset + T) // chunk - first, chunk, before)


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class _Folded(masks.Mask):
    """A mask of the line of queries, asked about the rows of the fold."""

    mask: Mask
    fold: _Fold
    batch: int
    length: int

    def padded(self, num_queries, num_keys):
        return dataclasses.replace(self, mask=self.mask.padded(self.length, num_keys))

    def block(self, q_index_t, k_index_s):
        places_t = masks.as_array(q_index_t)
        starts_A = jnp.arange(self.fold.count) * self.fold.width - self.fold.before
        # A place that the line does not have is asked about too; nobody reads the answer.
        asked = jax.vmap(lambda at: self.mask.block(at + places_t, k_index_s), out_axes=1)
        rows_BANts = asked(starts_A)
        whole = jnp.broadcast_to(rows_BANts, (self.batch, *rows_BANts.shape[1:]))
        return whole.reshape(-1, *whole.shape[2:])


def _folded_bias(bias: Any, fold: _Fold, batch: int) -> Any:
    """Returns the bias [B, N, T, S] as that of the rows, [B * A, N, m, S] with 1 where it may."""
    if bias is None:
        return None
    bias_BNTS = masks.four_axes(jnp.asarray(bias), "bias")
    b, n, t, s = bias_BNTS.shape
    if t > 1:
        rows_BANmS = fold.queries(bias_BNTS, 2).swapaxes(1, 2)
    elif b > 1:
        rows_BANmS = bias_BNTS[:, None]
    else:
        return bias_BNTS
    shape = (batch, fold.count, n, fold.width if t > 1 else 1, s)
    return jnp.broadcast_to(rows_BANmS, shape).reshape(-1, *shape[2:])


def _check(q_BTNH, k_BLSKH, v_BLSKH, chunk, valid_BLS, mask, bias, offset) -> None:
    q, k, v = q_BTNH.shape, k_BLSKH.shape, v_BLSKH.shape
    if len(q) != 4 or len(k) != 5 or k != v:
        raise ValueError(
            "chunked_cross_attention: want q [B, T, N, H] and k, v of one shape [B, L, S, K, H], "
            f"not {q}, {k} and {v}"
        )
    if q[0] != k[0] or q[3] != k[4] or q[2] % k[3]:
        raise ValueError(
            f"chunked_cross_attention: queries {q} and keys {k} differ in batch or head width, or "
            "the key/value heads do not divide the query heads"
        )
    if chunk < 1:
        raise ValueError(f"chunked_cross_attention: chunk must be 1 or more, not {chunk}")
    if isinstance(offset, int) and k[1] < (offset + q[1]) // chunk:
        raise ValueError(
            f"chunked_cross_attention: {offset + q[1]} tokens have {(offset + q[1]) // chunk} "
            f"whole chunks of {chunk}, but k has neighbours of {k[1]}"
        )
    if valid_BLS is not None and (valid_BLS.shape != k[:3] or valid_BLS.dtype != jnp.bool_):
        raise ValueError(
            f"chunked_cross_attention: valid must be bool {k[:3]}, not {valid_BLS.dtype} "
            f"{valid_BLS.shape}"
        )
    if _compares_places(mask) or hasattr(bias, "block"):
        raise ValueError(
            "chunked_cross_attention: a retrieved token has no place in the text, so no causal, "
            "window, prefix or sinks mask and no bias by distance; it is causal as it is"
        )


def _compares_places(mask: Mask | None) -> bool:
    if isinstance(mask, (masks.Both, masks.Either)):
        return _compares_places(mask.left) or _compares_places(mask.right)
    return isinstance(mask, _OF_PLACES)
