"""BigBird's attention: a window of blocks, the first and last block global, and random blocks.

Zaheer et al., 2020, section 2 and appendix D. The line is cut into blocks. The first and the last
see all and are seen by all; the others see the block before, their own and the next, and some
blocks drawn for each head. What is drawn comes from the caller, for it was published as a program;
where it repeats a block that is seen anyway, the block's keys count twice in the softmax, as there.

The causal form, which the paper does not have, knows no last block: only the first is global.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, I blocks of queries
that are not global, R random blocks, E keys of global blocks, t and s the queries and keys asked
about.
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
from jaxformer.ops.attention.drawn_blocks import Drawn
from jaxformer.ops.indices import Index, as_array, in_place
from jaxformer.ops.masks import Mask, pytree


def bigbird(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    block: int = 64,
    random_NIR: jax.Array | None = None,
    repeat_first: int = 0,
    offset: int | jax.Array = 0,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax over a window of blocks, the global blocks and random ones (appendix D).

    Queries that are not the whole line (T != S or an offset, as when decoding) and returned weights
    are computed densely: O(T S), for one query O(S).

    Args:
      q_BTNH: queries; query t stands at key t + offset.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      block: tokens of a block; the last one may be short.
      random_NIR: int32, the blocks drawn for each head and each block of queries that is not
        global: I = blocks - 2, and blocks - 1 where the mask is causal. -1 draws none. None: none.
      repeat_first: counts the first block's keys so many times more for all but global queries.
        Transformers' BigBird draws block 0 always when it does not train: this is that, for R.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.
      mask: further restricts who sees whom; a spec of `masks`, or None. `masks.causal()` gives the
        causal form.
      bias: as in `attention`.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      soft_cap: as in `attention`.
      dropout_rate: static probability of dropping a weight.
      key: random key, needed if dropout_rate > 0.
      return_weights: return the weights, before dropout, too: float32 [B, N, T, S], at O(T S). A
        key that counts twice has one weight, the sum.

    Returns:
      out_BTNH in the dtype of the queries, exactly 0 where nothing is seen; or (out, weights).

    Raises:
      ValueError: a plan of another shape, shapes that do not fit, or dropout without a key.
    """
    check("bigbird", q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key)
    (T, N, H), S = q_BTNH.shape[1:], k_BSKH.shape[1]
    if block < 1 or repeat_first < 0:
        raise ValueError(
            f"bigbird: block must be >= 1 and repeat_first >= 0, not {block} and {repeat_first}"
        )
    layout = Layout(block, -(-S // block), masks.is_causal(mask), repeat_first)
    want = (N, layout.inner)
    if random_NIR is not None and (random_NIR.ndim != 3 or random_NIR.shape[:2] != want):
        raise ValueError(
            f"bigbird: the plan must be int32 [N, I, R] with N, I = {want}, not {random_NIR.shape}"
        )
    if isinstance(scale, jax.Array):
        q_BTNH, scale = (q_BTNH * scale).astype(q_BTNH.dtype), 1.0
    options: dict[str, Any] = {
        "scale": 1.0 / math.sqrt(H) if scale is None else scale,
        "soft_cap": soft_cap,
        "dropout_rate": dropout_rate,
        "key": key if dropout_rate > 0.0 else None,
    }
    bias = scores.as_bias(bias)
    if in_place(T, S, offset) and not return_weights and layout.inner > 0:
        return _by_blocks(q_BTNH, k_BSKH, v_BSKH, layout, random_NIR, mask, bias, options)
    seen = Seen(layout, random_NIR, offset)
    return attention(
        q_BTNH, k_BSKH, v_BSKH, mask=seen if mask is None else mask & seen,
        bias=Times(bias, seen), return_weights=return_weights, **options,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """The blocks, in number, and which are global."""

    size: int
    number: int
    causal: bool
    repeat_first: int

    @property
    def inner(self) -> int:
        """How many blocks of queries are not global."""
        return max(self.number - (1 if self.causal else 2), 0)

    def is_global(self, block: jax.Array) -> jax.Array:
        first = block == 0
        return first if self.causal else first | (block == self.number - 1)


jax.tree_util.register_static(Layout)


def _by_blocks(q_BTNH, k_BSKH, v_BSKH, layout, random_NIR, mask, bias, options):
    """Returns out_BTNH of a whole line, in O(T) time and memory."""
    T, N, K, size = q_BTNH.shape[1], q_BTNH.shape[2], k_BSKH.shape[2], layout.size
    inner = slice(size, size * (1 + layout.inner))
    parts = [_global_rows(q_BTNH, k_BSKH, v_BSKH, slice(size), mask, bias, options, 0)]
    if not layout.causal:
        last = slice(inner.stop, T)
        parts.append(_global_rows(q_BTNH, k_BSKH, v_BSKH, last, mask, bias, options, 1))
    # The blocks are whole from here on; what is added nobody sees.
    long = size * layout.number
    if long != T:
        real = masks.lengths(jnp.full((1,), T, jnp.int32))
        mask = real if mask is None else mask & real
    mask = None if mask is None else mask.padded(long, long)
    bias = scores.padded_bias(bias, long, long)
    q, k, v = (masks.lengthen(x, 1, long) for x in (q_BTNH, k_BSKH, v_BSKH))
    drawn = None
    if random_NIR is not None and random_NIR.shape[2]:
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))  # each head draws its own
        drawn = Drawn(
            random_NIR.astype(jnp.int32),
            None if mask is None else From(mask, long, size),
            None if bias is None else From(bias, long, size),
        )
    ends = [slice(size)] if layout.causal else [slice(size), slice(long - size, long)]
    places_E = jnp.concatenate([jnp.arange(x.start or 0, x.stop) for x in ends])
    k_BEKH, v_BEKH = (jnp.concatenate([x[:, end] for end in ends], axis=1) for x in (k, v))
    more = None if bias is None else From(bias, long, size, places_E)
    if layout.repeat_first:
        more = First(more, size, layout.repeat_first)
    of_ends = None if mask is None else From(mask, long, size, places_E)
    extra = Extra(k_BEKH, v_BEKH, of_ends, more)
    near = Beside(layout) if mask is None else mask & Beside(layout)
    if layout.causal:
        options = options | {"key": _fold(options["key"], 2)}
    out_BtNH, _ = banded(
        q[:, inner], k, v, start_i=jnp.arange(layout.inner) * size,
        width=(2 if layout.causal else 3) * size, query_chunk=size, mask=From(near, long, size),
        bias=None if bias is None else From(bias, long, size), extra=extra, drawn=drawn, **options,
    )  # fmt: skip
    return jnp.concatenate([parts[0], out_BtNH[:, : T - size], *parts[1:]], axis=1)


def _global_rows(q_BTNH, k_BSKH, v_BSKH, rows, mask, bias, options, number):
    start, T = rows.start or 0, q_BTNH.shape[1]
    if options["key"] is not None:
        options = options | {"key": _fold(options["key"], number)}
    return attention(
        q_BTNH[:, rows], k_BSKH, v_BSKH, mask=None if mask is None else From(mask, T, start),
        bias=None if bias is None else From(bias, T, start), **options,
    )  # fmt: skip


def _fold(key: jax.Array | None, number: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class From(Mask):
    """A mask, or a bias, of a line's queries from `start` on, and of its keys at certain places."""

    whole: Any
    length: int
    start: int
    places_E: jax.Array | None = None

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        if not isinstance(self.whole, Mask):  # a bias array is not padded: gathered, it ends in 0
            q_index_t, k_index_s = as_array(q_index_t), as_array(k_index_s)
        if self.places_E is not None:
            k_index_s = self.places_E[as_array(k_index_s)]
        return self.whole.block(_shift(q_index_t, self.start), k_index_s)

    def range(self, q_start: int, q_stop: int, num_keys: int) -> tuple[int, int]:
        if self.places_E is not None or not isinstance(self.whole, Mask):
            return 0, num_keys
        return self.whole.range(q_start + self.start, q_stop + self.start, num_keys)

    def padded(self, num_queries: int, num_keys: int) -> Mask:
        if not isinstance(self.whole, Mask):
            return self
        long = max(self.length, self.start + num_queries)
        return dataclasses.replace(self, whole=self.whole.padded(long, num_keys))


def _shift(index: Index, by: int) -> Index:
    if isinstance(index, range):
        return range(index.start + by, index.stop + by, index.step)
    if isinstance(index, masks.Run):
        return masks.Run(index.start + by, index.size)
    return index + by


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Beside(Mask):
    """Keys of the blocks beside the query's and of its own, without the global blocks."""

    layout: Layout

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        q_t1 = as_array(q_index_t)[:, None] // self.layout.size
        k_1s = as_array(k_index_s)[None, :] // self.layout.size
        return ((jnp.abs(q_t1 - k_1s) <= 1) & ~self.layout.is_global(k_1s))[None, None]


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class First:
    """A bias that makes the first keys count several times more: exp(log n) = n."""

    bias: Any
    number: int
    more: int

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        first_s = as_array(k_index_s) < self.number
        added_s = jnp.where(first_s, math.log(1 + self.more), 0.0)
        added = jnp.broadcast_to(added_s, (1, 1, len(q_index_t), len(k_index_s)))
        return added if self.bias is None else added + self.bias.block(q_index_t, k_index_s)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Seen(Mask):
    """All that a query sees, and how often: the dense form."""

    layout: Layout
    random_NIR: jax.Array | None
    offset: int | jax.Array = 0

    def counts(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        """Returns int32 [1, N|1, t, s]: how often a query sees a key."""
        layout = self.layout
        q_t1 = (as_array(q_index_t)[:, None] + self.offset) // layout.size
        k_1s = as_array(k_index_s)[None, :] // layout.size
        to_all_t1 = layout.is_global(q_t1)
        once_ts = to_all_t1 | layout.is_global(k_1s) | (jnp.abs(q_t1 - k_1s) <= 1)
        count_Nts = (once_ts + layout.repeat_first * ((k_1s == 0) & ~to_all_t1))[None]
        if self.random_NIR is not None and layout.inner:
            row_t = jnp.clip(q_t1[:, 0] - 1, 0, layout.inner - 1)
            drawn_NtRs = self.random_NIR[:, row_t, :, None] == k_1s[None, :, None, :]
            count_Nts = count_Nts + (drawn_NtRs.sum(axis=2) * ~to_all_t1)
        return count_Nts[None]

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return self.counts(q_index_t, k_index_s) > 0


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Times:
    """A bias that makes a key count as often as it is seen."""

    bias: Any
    seen: Seen

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        counts = self.seen.counts(q_index_t, k_index_s).astype(jnp.float32)
        added = jnp.log(jnp.maximum(counts, 1.0))
        if self.bias is None:
            return added
        # A bias array is not padded: gathered, it ends in 0.
        return added + self.bias.block(as_array(q_index_t), as_array(k_index_s))
