"""Arrays in a folder: appended to row by row, renamed into place whole, opened as memory maps.

A folder holds NAME.npy for each array and one meta.json with what is known of them and checksums of
their bytes. Nothing is overwritten, and a folder that is not finished does not have its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import UserError

FORMAT = 1  # a change in what is written must change this
BLOCK = 1 << 20  # bytes that share a checksum
CHECKED = 256  # blocks of an array that are verified at opening, evenly spread


class Stored(NamedTuple):
    """An opened folder: its arrays, mapped into memory and read-only, and what is known of them."""

    folder: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class Writer:
    """Appends rows to the arrays of a folder that is being made; `meta` goes into meta.json."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self._open: dict[str, tuple[Any, np.dtype, tuple[int, ...]]] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Appends rows [n, ...], of one shape and dtype for each name."""
        if name not in self._open:
            stream = open(self.folder / f"{name}.npy", "wb")  # noqa: SIM115 (closed in finish)
            self._open[name] = stream, rows.dtype, rows.shape[1:]
            self.counts[name] = 0
            self._header(name)
        stream, dtype, shape = self._open[name]
        assert rows.dtype == dtype and rows.shape[1:] == shape, (name, rows.dtype, rows.shape)
        stream.write(np.ascontiguousarray(rows).data)
        self.counts[name] += len(rows)

    def _header(self, name: str) -> None:
        # numpy leaves room for the number of rows to grow.
        stream, dtype, shape = self._open[name]
        stream.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.counts[name], *shape),
        }
        np.lib.format.write_array_header_1_0(stream, header)

    def close(self) -> None:
        """Closes the files, finished or not."""
        for stream, _, _ in self._open.values():
            stream.close()

    def finish(self) -> None:
        """Writes how many rows there are, and meta.json."""
        files = {}
        for name, (stream, dtype, shape) in self._open.items():
            self._header(name)
            stream.close()
            file = self.folder / f"{name}.npy"
            files[name] = {
                "shape": [self.counts[name], *shape], "dtype": dtype.name,
                "bytes": file.stat().st_size, "blocks": list(_checksums(file)),
            }  # fmt: skip
        whole = {**self.meta, "format": FORMAT, "files": files}
        text = json.dumps({**whole, "checksum": _digest(whole)})
        (self.folder / "meta.json").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def creating(out: str | Path, kind: str) -> Iterator[Writer]:
    """Gives a Writer whose arrays become the folder `out` at the end, or nothing at all.

    Args:
      out: a new folder.
      kind: what it will be, e.g. "datastore"; `open_folder` asks for it.

    Raises:
      UserError: see `refuse`, or the disk is full.
    """
    out = Path(out)
    refuse(out)
    folder = out.with_name(f"{out.name}.unfinished-{secrets.token_hex(4)}")
    try:
        folder.mkdir()
        writer = Writer(folder)
        try:
            yield writer
            writer.meta["kind"] = kind
            writer.finish()
        finally:
            writer.close()
        refuse(out)  # a rename would replace an empty folder that came there meanwhile
        os.rename(folder, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse(out: str | Path) -> None:
    """Raises UserError where `creating` would overwrite something, or has nowhere to write."""
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already; nothing is overwritten: give a new folder")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")


def open_folder(path: str | Path, kind: str, command: str) -> Stored:
    """Opens what `creating` made; of a large array some blocks are verified, not all.

    Args:
      path: the folder.
      kind: what it must be.
      command: which makes such a folder, for messages.

    Raises:
      UserError: no such folder, of another kind, or damaged.
    """
    path = Path(path)
    if not (path / "meta.json").is_file():
        what = "has no meta.json" if path.is_dir() else "is no folder"
        raise UserError(f"{path} {what}: give one that jaxformer {command} made")
    again = f"{path} is damaged ({{}}); make it again with jaxformer {command}"
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        sum_of = meta.pop("checksum")
        if sum_of != _digest(meta):
            raise ValueError("meta.json is not as it was written")
        if meta["format"] != FORMAT or meta["kind"] != kind:
            raise UserError(
                f"{path} holds {meta['kind']} of format {meta['format']}, but {kind} of format "
                f"{FORMAT} is needed; make it with jaxformer {command}"
            )
        arrays = {name: _mapped(path / f"{name}.npy", of) for name, of in meta["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(again.format(str(error).partition("\n")[0])) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return Stored(path, arrays, meta)


def _mapped(file: Path, about: dict[str, Any]) -> np.ndarray:
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size != about["bytes"]:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes and not {about['bytes']}")
    blocks = about["blocks"]
    with open(file, "rb") as stream:
        for block in np.unique(np.linspace(0, len(blocks) - 1, CHECKED).astype(int)).tolist():
            stream.seek(block * BLOCK)
            if zlib.crc32(stream.read(BLOCK)) != blocks[block]:
                raise ValueError(f"{file.name} is not as it was written")
    if not about["shape"][0]:  # nothing to map
        return np.zeros(about["shape"], about["dtype"])
    array = np.load(file, mmap_mode="r")
    if list(array.shape) != about["shape"] or array.dtype.name != about["dtype"]:
        raise ValueError(f"{file.name} has another shape or dtype")
    return array


def _checksums(file: Path) -> Iterator[int]:
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            yield zlib.crc32(block)


def _digest(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
