"""Bytes of files into arrays: in chunks, converted and transposed on the way, by several threads.

A model's memory is taken once, when the result is allocated; everything else here is a few chunks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.interop.reader import Stored

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_CHUNK = 1 << 20  # bytes read at once, so that a chunk stays in a core's cache while it is copied
_TILE = 256  # columns of a chunk that are transposed at once
_MOST_ROWS = 1024  # that one system call may fill (IOV_MAX)
_JOB = 32 << 20  # bytes of one thread's task: a large embedding is read by all threads
_ALIGN = 64  # XLA takes memory as it is from this alignment on


class Target(NamedTuple):
    """Where a part of a stored tensor goes.

    view: what is written, in the published layout.
    begin: where in the stored tensor view[0, 0, ...] lies.
    """

    view: np.ndarray
    begin: tuple[int, ...]


class Job(NamedTuple):
    """One stored tensor and everything that is made of it."""

    stored: Stored
    targets: Sequence[Target]


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an empty array that XLA can take without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + _ALIGN, np.uint8)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + size].view(dtype).reshape(tuple(shape))


def run(jobs: Iterable[Job], threads: int | None = None) -> None:
    """Does all jobs, in the order in which their bytes lie in the files.

    Raises:
      OSError: a file cannot be read, or ends before its tensors do.
    """
    tasks = [
        (job, rows)
        for job in sorted(jobs, key=lambda job: (job.stored.file, job.stored.begin))
        for rows in _row_ranges(job)
    ]
    threads = min(threads or _threads(), len(tasks))
    if threads < 2:
        for job, rows in tasks:
            _copy(job, *rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_copy, job, *rows) for job, rows in tasks]:
            done.result()


def same(a: Stored, b: Stored) -> bool:
    """Returns whether two stored tensors hold the same bytes, of the same type and shape."""
    if (a.dtype, a.shape, a.size) != (b.dtype, b.shape, b.size):
        return False
    with open(a.file, "rb", buffering=0) as one, open(b.file, "rb", buffering=0) as other:
        for start in range(0, a.size, _CHUNK):
            size = min(_CHUNK, a.size - start)
            left = _scratch("chunk", size, np.dtype(np.uint8))
            right = _scratch("tile", size, np.dtype(np.uint8))
            _read(one, a.begin + start, left)
            _read(other, b.begin + start, right)
            if not np.array_equal(left, right):
                return False
    return True


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


def _row_ranges(job: Job) -> list[tuple[int, int]]:
    """Returns ranges of the stored tensor's first axis that hold what is wanted, none too large."""
    if not job.stored.size or not job.targets:
        return []
    shape = job.stored.shape or (1,)
    low = min(target.begin[0] if target.begin else 0 for target in job.targets)
    high = max(
        (target.begin[0] + target.view.shape[0]) if target.begin else 1 for target in job.targets
    )
    step = max(1, _JOB // (job.stored.size // shape[0]))
    return [(start, min(start + step, high)) for start in range(low, high, step)]


_local = threading.local()


def _scratch(name: str, count: int, dtype: np.dtype) -> np.ndarray:
    """Returns this thread's piece of memory of that name, as `count` elements."""
    size = count * dtype.itemsize
    memory = getattr(_local, name, None)
    if memory is None or memory.nbytes < size:
        memory = np.empty(size, np.uint8)
        setattr(_local, name, memory)
    return memory[:size].view(dtype)


def _copy(job: Job, low: int, high: int) -> None:
    """Reads the rows `low` to `high` of a stored tensor into its targets."""
    stored = job.stored
    shape, dtype = stored.shape or (1,), DTYPES[stored.dtype]
    row_bytes = stored.size // shape[0]
    with open(stored.file, "rb", buffering=0) as file:
        if len(job.targets) == 1:
            (view, begin), *_ = job.targets
            view, begin = (view.reshape(1), (0,)) if not begin else (view, begin)
            if view.shape[1:] == shape[1:] and view.dtype == dtype and view.flags.c_contiguous:
                rows = view[low - begin[0] : high - begin[0]]
                _read(file, stored.begin + low * row_bytes, rows.reshape(-1).view(np.uint8))
                return
            whole = view.shape[1:] == shape[1:] and view.dtype == dtype
            if whole and _is_transposed(view) and hasattr(os, "preadv"):
                _read_transposed(file, stored, view, begin[0], low, high)
                return
        left, right = _columns(job)
        row_shape = shape[1:] if right < 0 else (right - left,)
        count = int(np.prod(row_shape, dtype=np.int64))
        step = max(1, _CHUNK // (count * dtype.itemsize))
        for start in range(low, high, step):
            stop = min(start + step, high)
            chunk = _scratch("chunk", (stop - start) * count, dtype)
            begin = stored.begin + start * row_bytes + left * dtype.itemsize
            if right < 0:
                _read(file, begin, chunk.view(np.uint8))
            else:
                for row in chunk.reshape(stop - start, count).view(np.uint8):
                    _read(file, begin, row)
                    begin += row_bytes
            chunk = chunk.reshape(stop - start, *row_shape)
            for target in job.targets:
                _place(chunk, (start, left), target)


def _columns(job: Job) -> tuple[int, int]:
    """Returns the range of columns to read of a matrix, or (0, -1) where whole rows are read."""
    if len(job.stored.shape) != 2:
        return 0, -1
    left = min(target.begin[1] for target in job.targets)
    right = max(target.begin[1] + target.view.shape[1] for target in job.targets)
    # Reading row by row pays where much is left out, as of a matrix that is split over devices.
    return (left, right) if 2 * (right - left) <= job.stored.shape[1] else (0, -1)


def _read(file, begin: int, into: np.ndarray) -> None:
    file.seek(begin)
    rest = memoryview(into)  # type: ignore[arg-type]
    while rest:
        count = file.readinto(rest)
        if not count:
            raise OSError(f"{file.name} ended {len(rest):,} bytes too early while it was read")
        rest = rest[count:]


def _place(chunk: np.ndarray, corner: tuple[int, int], target: Target) -> None:
    """Copies to a target what a chunk has of it; `corner`: its first row and column."""
    view, begin = target
    if not begin:
        view, begin = view.reshape(1), (0,)
    start = corner[0]
    first = max(start, begin[0])
    last = min(start + chunk.shape[0], begin[0] + view.shape[0])
    if first >= last:
        return
    where = [slice(first - start, last - start)]
    for axis, (at, size) in enumerate(zip(begin[1:], view.shape[1:], strict=True)):
        at -= corner[1] if axis == 0 else 0
        where.append(slice(at, at + size))
    source, into = chunk[tuple(where)], view[first - begin[0] : last - begin[0]]
    if _is_transposed(into):
        _transpose(source, into)
    else:
        np.copyto(into, source, casting="unsafe")


def _is_transposed(view: np.ndarray) -> bool:
    return view.ndim == 2 and view.strides[0] < view.strides[1]


def _tile(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """Returns memory for a tile whose rows are never a power of two apart.

    Rows that are would all fall into the same few lines of the cache.
    """
    stride = columns + 64 // dtype.itemsize
    return _scratch("tile", rows * stride, dtype).reshape(rows, stride)[:, :columns]


def _transpose(source: np.ndarray, into: np.ndarray) -> None:
    """Copies source [rows, columns] into `into`, whose columns are contiguous, tile by tile."""
    rows, columns = source.shape
    memory = _tile(rows, min(_TILE, columns), into.dtype)
    for at in range(0, columns, _TILE):
        tile = memory[:, : columns - at]
        np.copyto(tile, source[:, at : at + _TILE], casting="unsafe")  # converts on the way
        np.copyto(into[:, at : at + _TILE].T, tile.T)


def _read_transposed(
    file: Any, stored: Stored, view: np.ndarray, first: int, low: int, high: int
) -> None:
    """Does `_copy` where no type changes: the system puts each row where the tile wants it."""
    columns = view.shape[1]
    row_bytes = columns * view.itemsize
    step = max(1, min(_CHUNK // row_bytes, _MOST_ROWS, high - low))
    memory = _tile(step, columns, view.dtype)
    rows = [memoryview(row.view(np.uint8)) for row in memory]  # type: ignore[arg-type]
    for start in range(low, high, step):
        count = min(step, high - start)
        begin = stored.begin + start * row_bytes
        if os.preadv(file.fileno(), rows[:count], begin) < count * row_bytes:
            for i, row in enumerate(memory[:count]):
                _read(file, begin + i * row_bytes, row.view(np.uint8))
        into = view[start - first : start - first + count]
        for at in range(0, columns, _TILE):
            np.copyto(into[:, at : at + _TILE].T, memory[:count, at : at + _TILE].T)
