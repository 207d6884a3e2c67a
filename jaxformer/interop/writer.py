"""Writing safetensors files: tensor by tensor, into a folder that appears when all is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.errors import UserError
from jaxformer.interop.reader import INDEX, SINGLE
from jaxformer.interop.table import Published, Slot

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
MAX_SHARD_SIZE = 5_000_000_000


class _Entry(NamedTuple):
    name: str
    tensor: Published
    dtype: np.dtype
    size: int


def refuse_existing(directory: Path) -> None:
    """Raises UserError if `directory` is there and not empty, or cannot be made."""
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        raise UserError(f"{directory} is there already; nothing is overwritten: give a new folder")
    parent = directory.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{directory} cannot be made: {parent} is not a folder one can write to")


def write_folder(directory: Path, fill: Callable[[Path], None]) -> None:
    """Makes `directory` with what `fill(folder)` writes: all of it, or nothing.

    Raises:
      UserError: it is there already, or cannot be written.
    """
    refuse_existing(directory)
    temporary = directory.parent / f".{directory.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        os.rename(temporary, directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(
    directory: Path,
    published: Mapping[str, Published],
    leaves: Mapping[str, jax.Array],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Writes model.safetensors, or several shards and their index; holds one tensor at a time.

    Args:
      directory: an existing folder.
      published: what to write, by name; see table.expand.
      leaves: path -> our parameter.
      max_shard_size: in bytes, of one file; a larger tensor gets a file of its own.
    """
    entries = []
    for name, tensor in published.items():
        dtype = np.dtype(leaves[tensor.slots[0].path].dtype)
        if dtype.name not in _NAMES:
            raise UserError(
                f"{tensor.slots[0].path} is {dtype.name}; what is written must be "
                f"{', '.join(_NAMES)}"
            )
        count = int(np.prod(tensor.shape, dtype=np.int64))
        entries.append(_Entry(name, tensor, dtype, count * dtype.itemsize))
    shards: list[list[_Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.size for e in shards[-1]) + entry.size > max_shard_size:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0], leaves)
        return
    mapping = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, shard, leaves)
        mapping |= {entry.name: file for entry in shard}
    total = sum(entry.size for entry in entries)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": mapping})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as transformers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(path: Path, entries: list[_Entry], leaves: Mapping[str, jax.Array]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        shape, offsets = list(entry.tensor.shape), [at, at + entry.size]
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype.name], "shape": shape, "data_offsets": offsets,
        }  # fmt: skip
        at += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            for block in _blocks(_assemble(entry, leaves)):
                file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _assemble(entry: _Entry, leaves: Mapping[str, jax.Array]) -> np.ndarray:
    """Returns a published tensor: a view of ours, or its parts side by side."""
    views = [slot.transform.publish(_slice(leaves[slot.path], slot)) for slot in entry.tensor.slots]
    if len(views) == 1:
        return views[0]
    joined = np.empty(entry.tensor.shape, entry.dtype)
    for slot, view in zip(entry.tensor.slots, views, strict=True):
        where = (slice(b, b + n) for b, n in zip(slot.begin, slot.extent, strict=True))
        joined[tuple(where)] = view
    return joined


def _slice(leaf: jax.Array, slot: Slot) -> np.ndarray:
    """Returns a slice of ours on the host, without bringing the whole leaf there."""
    if isinstance(leaf, np.ndarray):
        return np.ascontiguousarray(leaf[slot.index])
    if not leaf.is_fully_addressable:
        raise UserError(
            f"{slot.path} is split over several processes; write it from a run's checkpoint, in one"
        )
    on_host = len(leaf.devices()) == 1 and next(iter(leaf.devices())).platform == "cpu"
    ours = np.asarray(leaf)[slot.index] if on_host else np.asarray(leaf[slot.index])
    return np.ascontiguousarray(ours)


def _blocks(tensor: np.ndarray, size: int = 1 << 22) -> Iterator[memoryview]:
    """Yields the bytes of a tensor, row-major, a few megabytes at a time."""
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    step = max(1, size // max(1, rows[:1].nbytes))
    for start in range(0, rows.shape[0], step):
        block = np.ascontiguousarray(rows[start : start + step])
        yield memoryview(block.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
