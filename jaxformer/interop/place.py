"""From stored tensors to a tree of parameters: on the CPU, layer by layer, or over a mesh.

Every way allocates the result once and copies each stored tensor into its place (see copying.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxformer.interop import copying
from jaxformer.interop.copying import Job, Target, aligned
from jaxformer.interop.reader import Stored
from jaxformer.interop.table import Shape, Slot, Table

Leaves = dict[str, jax.Array]
Sources = Mapping[str, Stored]  # published name -> where it is stored


def on_cpu(table: Table, sources: Sources, shapes: Mapping[str, Shape], dtype: np.dtype) -> Leaves:
    """Returns the leaves in host memory that JAX takes as it is, without a copy."""
    buffers = {path: aligned(shape, dtype) for path, shape in shapes.items()}
    for (path, index), value in table.fills.items():
        buffers[path][index] = value
    jobs = []
    for name, stored in sources.items():
        slots = [slot for slot in table.published[name].slots if slot.path in buffers]
        jobs.append(Job(stored, [Target(_view(slot, buffers[slot.path]), slot.begin)
                                 for slot in slots]))  # fmt: skip
    copying.run(job for job in jobs if job.targets)
    return {path: jax.device_put(buffer, may_alias=True) for path, buffer in buffers.items()}


def _view(slot: Slot, buffer: np.ndarray) -> np.ndarray:
    return slot.transform.publish(buffer[slot.index])


def by_layer(
    table: Table, sources: Sources, shapes: Mapping[str, Shape], dtype: np.dtype
) -> Leaves:
    """Returns the leaves on the default device; the host holds one stored tensor at a time."""
    leaves: Leaves = {}
    put = jax.jit(
        lambda leaf, piece, index: jax.lax.dynamic_update_slice(
            leaf, piece.reshape((1,) * len(index) + piece.shape), [*index, *([0] * piece.ndim)]
        ),
        donate_argnums=0,
    )

    def store(path: str, index: tuple[int, ...], piece: np.ndarray | jax.Array) -> None:
        if not index:
            leaves[path] = jnp.array(piece)  # a copy of its own: the host's memory is used again
            return
        if path not in leaves:
            leaves[path] = jnp.zeros(shapes[path], dtype)
        at = tuple(map(np.int32, index))
        leaves[path] = jax.block_until_ready(put(leaves[path], piece, at))

    for (path, index), value in table.fills.items():
        store(path, index, np.full(shapes[path][len(index) :], value, dtype))
    for name, stored in sorted(sources.items(), key=lambda item: (item[1].file, item[1].begin)):
        slots = [slot for slot in table.published[name].slots if slot.path in shapes]
        buffers = [aligned(slot.shape, dtype) for slot in slots]
        copying.run([Job(stored, [
            Target(slot.transform.publish(buffer), slot.begin)
            for slot, buffer in zip(slots, buffers, strict=True)
        ])])  # fmt: skip
        for slot, buffer in zip(slots, buffers, strict=True):
            store(slot.path, slot.index, buffer)
    return jax.block_until_ready(leaves)


def over_mesh(
    table: Table,
    sources: Sources,
    shapes: Mapping[str, Shape],
    dtype: np.dtype,
    shardings: Mapping[str, NamedSharding],
) -> Leaves:
    """Returns the leaves split over a mesh; each device's part is read by itself."""
    of_path: dict[str, list[tuple[Slot, Stored]]] = {path: [] for path in shapes}
    for name, stored in sources.items():
        for slot in table.published[name].slots:
            if slot.path in of_path:
                of_path[slot.path].append((slot, stored))
    leaves = {}
    for path, shape in shapes.items():
        fills = {index: value for (p, index), value in table.fills.items() if p == path}
        read = functools.partial(_read_part, shape, dtype, of_path[path], fills)
        leaf = jax.make_array_from_callback(shape, shardings[path], _once(read), dtype=dtype)
        leaves[path] = jax.block_until_ready(leaf)
    return leaves


def _once(read: Callable[[tuple[slice, ...]], np.ndarray]) -> Callable[..., np.ndarray]:
    """Returns `read` with the last part kept: devices that hold the same one follow each other."""
    kept: dict[Any, np.ndarray] = {}

    def callback(where: tuple[slice, ...]) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in where)
        if key not in kept:
            kept.clear()
            kept[key] = read(where)
        return kept[key]

    return callback


def _read_part(
    shape: Shape,
    dtype: np.dtype,
    slots: list[tuple[Slot, Stored]],
    fills: Mapping[tuple[int, ...], float],
    where: tuple[slice, ...],
) -> np.ndarray:
    """Returns the part `where` of a leaf, from the slots that make the leaf up."""
    bounds = [part.indices(size)[:2] for part, size in zip(where, shape, strict=True)]
    buffer = aligned([high - low for low, high in bounds], dtype)

    def local(index: tuple[int, ...]) -> tuple[int, ...] | None:
        ranges = list(zip(index, bounds, strict=False))
        inside = all(low <= i < high for i, (low, high) in ranges)
        return tuple(i - low for i, (low, _) in ranges) if inside else None

    for index, value in fills.items():
        at = local(index)
        if at is not None:
            buffer[at] = value
    jobs = []
    for slot, stored in slots:
        at = local(slot.index)
        if at is None:
            continue
        for piece, window in slot.transform.windows(slot.shape, where[len(slot.index) :]):
            begin = tuple(a + b for a, b in zip(slot.begin, window, strict=True))
            view = slot.transform.publish(buffer[at][piece])
            jobs.append(Job(stored, [Target(view, begin)]))
    copying.run(jobs)
    return buffer
