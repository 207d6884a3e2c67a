"""Which queries and keys a block holds, and the slices of arrays that belong to them.

An index is one of three: a Python range (static, with any step), a `Run` (consecutive from a start
that may be traced: a dynamic slice), or an int32 array of any places (a gather).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Index = Any


def in_place(num_queries: int, num_keys: int, offset: int | jax.Array) -> bool:
    """Whether each query surely has its own key: they are one whole line, not a part of it."""
    return num_queries == num_keys and isinstance(offset, int) and offset == 0


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The places start, start + 1, ..., start + size - 1."""

    start: int | jax.Array
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Any:
        """Returns the first (0) or the last (-1) place, or any other."""
        return self.start + (place if place >= 0 else self.size + place)

    def tree_flatten(self):
        return (self.start,), self.size

    @classmethod
    def tree_unflatten(cls, size, leaves):
        return cls(leaves[0], size)


def as_array(index: Index) -> jax.Array:
    """Returns the places as an int32 array."""
    if isinstance(index, range):
        return jnp.arange(index.start, index.stop, index.step, dtype=jnp.int32)
    if isinstance(index, Run):
        return index.start + jnp.arange(index.size, dtype=jnp.int32)
    return index


def are_consecutive(index: Index) -> bool:
    """Whether the places surely follow one another."""
    return isinstance(index, Run) or (isinstance(index, range) and index.step == 1)


def lengthen(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Returns `x` with zeros at the end of `axis`, up to `length`."""
    if x.shape[axis] == length:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def take(x: jax.Array, index: Index, axis: int) -> jax.Array:
    """Returns what `x` holds at these places of `axis`; 0 for a gathered place beyond its end."""
    if isinstance(index, range):
        return jax.lax.slice_in_dim(x, index.start, index.stop, index.step, axis=axis)
    if isinstance(index, Run):
        return jax.lax.dynamic_slice_in_dim(x, index.start, index.size, axis=axis)
    return jnp.take(x, index, axis=axis, mode="fill", fill_value=0)
