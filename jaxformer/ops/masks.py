"""Who may attend to whom: small specs, turned into booleans as late as possible.

A mask is a frozen dataclass that answers `block(q_index_t, k_index_s)`. Nothing of size T x S
exists until a backend asks for it, and kernels ask for a block at a time. True: may attend.

Shapes: B batch, N heads, T queries, S keys, t and s the queries and keys of one block.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer.ops.indices import Index, Run, as_array, lengthen, take

__all__ = [
    "Index", "Mask", "Run", "as_array", "block_of_array", "causal", "explicit", "four_axes",
    "key_range", "lengthen", "lengthen_array", "lengths", "materialise", "parts", "prefix",
    "pytree", "segments", "sinks", "take", "window",
]  # fmt: skip


class Mask:
    """What all masks share: `a & b`, and a range of keys that is the whole line unless known."""

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Either(self, other)

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        """Returns bool [B|1, N|1, t, s] for these query and key indices."""
        raise NotImplementedError

    def range(self, q_start: int, q_stop: int, num_keys: int) -> tuple[int, int]:
        """See `key_range`."""
        return 0, num_keys

    def padded(self, num_queries: int, num_keys: int) -> Mask:
        """Returns the mask whose arrays are as long as this; what is new may not be attended to."""
        return self


def pytree(cls: type) -> type:
    """Registers a frozen dataclass as a pytree: Python scalars are static, arrays are leaves.

    A static offset lets backends skip blocks; a traced one (a cache index) must be a leaf.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten(spec):
        values = [getattr(spec, name) for name in names]
        static = tuple(v if isinstance(v, _STATIC) else _LEAF for v in values)
        return [v for v, s in zip(values, static, strict=True) if s is _LEAF], static

    def unflatten(static, leaves):
        spec, leaves = object.__new__(cls), iter(leaves)
        for name, value in zip(names, static, strict=True):
            object.__setattr__(spec, name, next(leaves) if value is _LEAF else value)
        return spec

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


_LEAF = "leaf"
_STATIC = (bool, int, float, tuple, type(None))


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Both(Mask):
    """What both masks allow."""

    left: Mask
    right: Mask

    def block(self, q_index_t, k_index_s):
        return self.left.block(q_index_t, k_index_s) & self.right.block(q_index_t, k_index_s)

    def range(self, q_start, q_stop, num_keys):
        a, b = (
            self.left.range(q_start, q_stop, num_keys),
            self.right.range(q_start, q_stop, num_keys),
        )
        return max(a[0], b[0]), min(a[1], b[1])

    def padded(self, num_queries, num_keys):
        return Both(
            self.left.padded(num_queries, num_keys), self.right.padded(num_queries, num_keys)
        )


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Either(Mask):
    """What one of the masks allows."""

    left: Mask
    right: Mask

    def block(self, q_index_t, k_index_s):
        return self.left.block(q_index_t, k_index_s) | self.right.block(q_index_t, k_index_s)

    def range(self, q_start, q_stop, num_keys):
        a, b = (
            key_range(self.left, q_start, q_stop, num_keys),
            key_range(self.right, q_start, q_stop, num_keys),
        )
        if a[0] == a[1] or b[0] == b[1]:
            return b if a[0] == a[1] else a
        return min(a[0], b[0]), max(a[1], b[1])

    def padded(self, num_queries, num_keys):
        return Either(
            self.left.padded(num_queries, num_keys), self.right.padded(num_queries, num_keys)
        )


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Causal(Mask):
    offset: int | jax.Array = 0

    def block(self, q_index_t, k_index_s):
        return (_column(k_index_s) <= _row(q_index_t) + self.offset)[None, None]

    def range(self, q_start, q_stop, num_keys):
        return (0, q_stop + self.offset) if isinstance(self.offset, int) else (0, num_keys)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Window(Mask):
    left: int
    right: int = 0
    offset: int | jax.Array = 0

    def block(self, q_index_t, k_index_s):
        distance_ts = _column(k_index_s) - (_row(q_index_t) + self.offset)
        return ((distance_ts >= -self.left) & (distance_ts <= self.right))[None, None]

    def range(self, q_start, q_stop, num_keys):
        if not isinstance(self.offset, int):
            return 0, num_keys
        return q_start + self.offset - self.left, q_stop + self.offset + self.right


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Sinks(Mask):
    number: int

    def block(self, q_index_t, k_index_s):
        visible_1s = _column(k_index_s) < self.number
        return jnp.broadcast_to(visible_1s, (len(q_index_t), len(k_index_s)))[None, None]

    def range(self, q_start, q_stop, num_keys):
        return 0, self.number


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Prefix(Mask):
    lengths_B: jax.Array

    def block(self, q_index_t, k_index_s):
        in_prefix_B1s = _column(k_index_s) < self.lengths_B[:, None, None]
        return (in_prefix_B1s | (_column(k_index_s) <= _row(q_index_t)))[:, None]


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    q_segment_ids_BT: jax.Array
    others_BS: jax.Array | None = None  # the keys' ids where keys are not the queries' own tokens

    @property
    def kv_segment_ids_BS(self) -> jax.Array:
        return self.q_segment_ids_BT if self.others_BS is None else self.others_BS

    def block(self, q_index_t, k_index_s):
        q_Bt1 = take(self.q_segment_ids_BT, q_index_t, 1)[:, :, None]
        k_B1s = take(self.kv_segment_ids_BS, k_index_s, 1)[:, None, :]
        return ((q_Bt1 == k_B1s) & (k_B1s != 0))[:, None]

    def padded(self, num_queries, num_keys):
        q_ids_BT = lengthen(self.q_segment_ids_BT, 1, num_queries)
        if self.others_BS is None and num_queries == num_keys:
            return Segments(q_ids_BT)
        return Segments(q_ids_BT, lengthen(self.kv_segment_ids_BS, 1, num_keys))


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Lengths(Mask):
    kv_lengths_B: jax.Array

    def block(self, q_index_t, k_index_s):
        visible_B1s = _column(k_index_s) < self.kv_lengths_B[:, None, None]
        shape = (visible_B1s.shape[0], 1, len(q_index_t), visible_B1s.shape[-1])
        return jnp.broadcast_to(visible_B1s[:, None], shape)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Explicit(Mask):
    mask: jax.Array

    def block(self, q_index_t, k_index_s):
        return block_of_array(self.mask, q_index_t, k_index_s)

    def padded(self, num_queries, num_keys):
        return Explicit(lengthen_array(self.mask, num_queries, num_keys))


def causal(offset: int | jax.Array = 0) -> Mask:
    """Query t may see keys s <= t + offset.

    Args:
      offset: the position of query 0 among the keys (a cache index); an int, which lets backends
        skip blocks, or an int32 scalar array.
    """
    return Causal(offset)


def window(left: int, right: int = 0, offset: int | jax.Array = 0) -> Mask:
    """Query t may see keys t + offset - left <= s <= t + offset + right (Beltagy et al., 2020).

    Args:
      left: keys visible before the query's own; 0 or more.
      right: keys visible after it; 0 or more.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.

    Raises:
      ValueError: a negative width.
    """
    if left < 0 or right < 0:
        raise ValueError(f"window: left and right must be >= 0, not {left} and {right}")
    return Window(left, right, offset)


def sinks(number: int) -> Mask:
    """The first keys of the line: `causal() & (window(w) | sinks(4))` (Xiao et al., 2024, sec. 3).

    Args:
      number: keys that count as sinks; 0 or more.

    Raises:
      ValueError: a negative number.
    """
    if number < 0:
        raise ValueError(f"sinks: the number of keys must be >= 0, not {number}")
    return Sinks(number)


def prefix(lengths_B: jax.Array) -> Mask:
    """All see the prefix s < length; beyond it each sees its past (Raffel et al., 2020, fig. 4).

    Args:
      lengths_B: int32, the length of each row's bidirectional prefix.
    """
    return Prefix(jnp.asarray(lengths_B))


def segments(q_segment_ids_BT: jax.Array, kv_segment_ids_BS: jax.Array | None = None) -> Mask:
    """Only keys of the query's own segment are visible; id 0 is padding, which nobody sees.

    Args:
      q_segment_ids_BT: int32 segment of each query; a query in segment 0 sees nothing.
      kv_segment_ids_BS: int32 segment of each key; the queries' own if None.
    """
    if kv_segment_ids_BS is None or kv_segment_ids_BS is q_segment_ids_BT:
        return Segments(jnp.asarray(q_segment_ids_BT))
    return Segments(jnp.asarray(q_segment_ids_BT), jnp.asarray(kv_segment_ids_BS))


def lengths(kv_lengths_B: jax.Array) -> Mask:
    """Only keys s < length are visible.

    Args:
      kv_lengths_B: int32, the number of real keys of each row.
    """
    return Lengths(jnp.asarray(kv_lengths_B))


def explicit(mask: jax.Array) -> Mask:
    """Any boolean array; the only mask that costs O(T S) memory, and only because it is given so.

    Args:
      mask: bool, broadcastable to [B, N, T, S].

    Raises:
      ValueError: not boolean, or more than four axes.
    """
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(
            f"explicit: the mask must be boolean (True = may attend), not {mask.dtype}"
        )
    return Explicit(four_axes(mask, "mask"))


def materialise(mask: Mask, num_queries: int, num_keys: int) -> jax.Array:
    """Returns the whole mask as bool [B|1, N|1, T, S], for pictures and tests."""
    mask_BNTS = mask.block(range(num_queries), range(num_keys))
    return jnp.broadcast_to(mask_BNTS, (*mask_BNTS.shape[:2], num_queries, num_keys))


def parts(mask: Mask | None) -> list[Mask]:
    """Returns what `&` joined, in order; nothing for None."""
    if mask is None:
        return []
    return parts(mask.left) + parts(mask.right) if isinstance(mask, Both) else [mask]


def is_causal(mask: Mask | None) -> bool:
    """Whether `causal` is a part of it."""
    return any(isinstance(part, Causal) for part in parts(mask))


def key_range(mask: Mask | None, q_start: int, q_stop: int, num_keys: int) -> tuple[int, int]:
    """Static bounds: keys outside [lo, hi) are surely masked for queries q_start <= t < q_stop.

    Returns:
      (lo, hi), Python ints with 0 <= lo <= hi <= num_keys; lo == hi when nothing is visible.
    """
    lo, hi = (0, num_keys) if mask is None else mask.range(q_start, q_stop, num_keys)
    hi = min(max(hi, 0), num_keys)
    return min(max(lo, 0), hi), hi


def four_axes(x: jax.Array, what: str) -> jax.Array:
    """Returns `x` with leading axes of size 1 until it has four, [B|1, N|1, T|1, S|1]."""
    if x.ndim > 4:
        raise ValueError(f"{what} must broadcast to [B, N, T, S], but has shape {x.shape}")
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def block_of_array(x_BNTS: jax.Array, q_index_t: Index, k_index_s: Index) -> jax.Array:
    """Returns the block [B|1, N|1, t|1, s|1] of an array that broadcasts to [B, N, T, S]."""
    if x_BNTS.shape[2] != 1:
        x_BNTS = take(x_BNTS, q_index_t, 2)
    return take(x_BNTS, k_index_s, 3) if x_BNTS.shape[3] != 1 else x_BNTS


def lengthen_array(x_BNTS: jax.Array, num_queries: int, num_keys: int) -> jax.Array:
    """Returns an array that broadcasts to [B, N, T, S] with zeros up to more queries and keys."""
    if x_BNTS.shape[2] != 1:
        x_BNTS = lengthen(x_BNTS, 2, num_queries)
    return lengthen(x_BNTS, 3, num_keys) if x_BNTS.shape[3] != 1 else x_BNTS


def _row(q_index_t: Index) -> jax.Array:
    return as_array(q_index_t)[:, None]


def _column(k_index_s: Index) -> jax.Array:
    return as_array(k_index_s)[None, :]
