"""Tokenised text on disk: written once, checked, opened as a memory map.

A folder of the cache (an entry) holds, for each split, `<split>.bin` (all tokens in one stream),
`<split>.npz` (where documents begin, what is known of them), one tokenizer.json and one meta.json.
It is written beside its place and renamed into it, so that it is whole or not there, whoever else
writes. Small files in `index/` lead from what `stat` says of the source's files to the entry: a
second start reads no text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import UserError

FORMAT = 2  # a change in what is written, or in how texts become tokens, must change this
BLOCK = 1 << 20  # bytes that share a checksum
CHECKED = 128  # blocks of a stream that are verified at opening, evenly spread


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One tokenised split. J documents, N tokens.

    Attributes:
      tokens_N: the documents' tokens, one after the other (uint16 or uint32).
      offsets_J: [J + 1] int64, where each document begins; the last entry is N.
      first_J: tokens of the document's first text (its pair has the rest).
      labels_J: index of the class, -1 without one; or the number (float32).
      more: what else is known, by name; see encode.py.
    """

    tokens_N: np.ndarray
    offsets_J: np.ndarray
    first_J: np.ndarray
    labels_J: np.ndarray
    more: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def digest(content: Any) -> str:
    """Returns a short fingerprint of anything JSON can hold."""
    return hashlib.sha256(json.dumps([FORMAT, content]).encode()).hexdigest()[:24]


class Writer:
    """Appends documents to one split of an entry that is being made."""

    def __init__(self, folder: Path, split: str, vocab_size: int):
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.stream = open(folder / f"{split}.bin", "wb")  # noqa: SIM115 (closed in finish)
        self.folder, self.split = folder, split
        self.counts_V = np.zeros(vocab_size, np.int64)
        self.lengths: list[int] = []
        self.first: list[int] = []
        self.labels: list[int] | list[float] = []
        self.more: dict[str, list[np.ndarray]] = {}
        self.bytes = 0

    def add(
        self,
        parts: list[np.ndarray],
        first: list[int],
        labels: list[int] | list[float],
        size: int,
        counted: list[np.ndarray] | None = None,
        more: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Appends documents.

        Args:
          parts: their tokens.
          first: how many of these are the first text's.
          labels: their classes or numbers.
          size: bytes of their text.
          counted: the tokens that a model predicts, where not all; `size` is then of these.
          more: arrays that become Corpus.more, joined.
        """
        stream = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        scored = stream if counted is None else np.concatenate(counted)
        self.counts_V += np.bincount(scored, minlength=len(self.counts_V))
        self.stream.write(stream.astype(self.dtype).tobytes())
        self.lengths.extend(map(len, parts))
        self.first.extend(first)
        self.labels.extend(labels)  # type: ignore[arg-type]
        for name, array in (more or {}).items():
            self.more.setdefault(name, []).append(array)
        self.bytes += size

    def finish(self) -> dict[str, Any]:
        """Writes the rest; returns the split's part of meta.json."""
        self.stream.close()
        file = self.folder / f"{self.split}.npz"
        labels = np.array(self.labels)
        more: dict[str, Any] = {name: np.concatenate(x) for name, x in self.more.items()}
        owners = more.get("document_J", range(len(labels)))
        with open(file, "wb") as stream:
            np.savez(
                stream,
                offsets=np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64),
                first=np.array(self.first, np.int32),
                labels=labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32),
                **more,
            )
        probability_V = self.counts_V[self.counts_V > 0] / max(1, self.counts_V.sum())
        return {
            "dtype": self.dtype.name,
            "tokens": sum(self.lengths),
            "counted": int(self.counts_V.sum()),
            "documents": len(np.unique(owners)),
            "bytes": self.bytes,
            "entropy": float(-(probability_V * np.log(probability_V)).sum()),
            "blocks": _checksums(self.folder / f"{self.split}.bin"),
            "index": zlib.crc32(file.read_bytes()),
        }


def _checksums(file: Path) -> list[int]:
    checksums = []
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            checksums.append(zlib.crc32(block))
    return checksums


def lookup(cache: Path, stat_key: str) -> str:
    """Returns the name of the entry that belongs to what `stat` says, or ""."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((cache / "index" / f"{stat_key}.json").read_text())["entry"])
    return ""


def remember(cache: Path, stat_key: str, entry: str) -> None:
    """Writes what `lookup` reads."""
    file = cache / "index" / f"{stat_key}.json"
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # without it the next start is slower, not wrong
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"entry": entry}))
        os.replace(temporary, file)


def open_entry(cache: Path, entry: str) -> tuple[dict[str, Any], dict[str, Corpus]] | None:
    """Returns (meta, corpora by split) of an entry, or None if it is not there or damaged."""
    folder = cache / entry
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = meta.pop("splits")
        if meta["format"] != FORMAT or meta["checksum"] != _meta_checksum(meta, splits):
            return None
        text = (folder / "tokenizer.json").read_bytes()
        if zlib.crc32(text) != meta["tokenizer"]:
            return None
        fingerprint = digest([meta["tokenizer"], splits])
        corpora = {split: _open_split(folder, split, about) for split, about in splits.items()}
        known = {"splits": splits, "tokenizer_json": text.decode(), "fingerprint": fingerprint}
        return {**meta, **known}, corpora
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _meta_checksum(meta: dict, splits: dict) -> str:
    return digest([{k: meta[k] for k in sorted(meta) if k != "checksum"}, splits])


def _open_split(folder: Path, split: str, about: dict[str, Any]) -> Corpus:
    index = folder / f"{split}.npz"
    if zlib.crc32(index.read_bytes()) != about["index"]:
        raise ValueError("the index is damaged")
    with np.load(index) as arrays:
        more = dict(arrays)
    offsets, first, labels = (more.pop(name) for name in ("offsets", "first", "labels"))
    file, dtype = folder / f"{split}.bin", np.dtype(about["dtype"])
    if file.stat().st_size != about["tokens"] * dtype.itemsize or not about["tokens"]:
        raise ValueError("the stream has another length")
    tokens = np.memmap(file, dtype, "r").view(np.ndarray)
    data, blocks = tokens.view(np.uint8), about["blocks"]
    for block in np.unique(np.linspace(0, len(blocks) - 1, CHECKED).astype(int)).tolist():
        if zlib.crc32(data[block * BLOCK : (block + 1) * BLOCK].data) != blocks[block]:
            raise ValueError("the stream is damaged")
    return Corpus(tokens, offsets, first, labels, more)


def create(
    cache: Path, entry: str, fill: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Corpus]]:
    """Makes an entry and opens it.

    Args:
      cache: the cache's folder.
      entry: the entry's name; a damaged one of that name is replaced.
      fill: writes the files into the folder it is given; returns meta, with "splits" (of
        `Writer.finish`) and "tokenizer" (the checksum of its file).

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        folder = _temporary(cache, entry)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {cache} ({error.strerror}); set data.cache_dir"
        ) from None
    try:
        meta = {**fill(folder), "format": FORMAT}
        splits = meta.pop("splits")
        meta["checksum"] = _meta_checksum(meta, splits)
        (folder / "meta.json").write_text(json.dumps({**meta, "splits": splits}))
        for _ in range(3):  # another process may put its own, equal entry there meanwhile
            with contextlib.suppress(OSError):
                os.rename(folder, cache / entry)
            opened = open_entry(cache, entry)
            if opened is not None:
                return opened
            with contextlib.suppress(OSError):  # a damaged one: out of the way, then try again
                bad = _temporary(cache, entry)
                os.rename(cache / entry, bad / "damaged")
                shutil.rmtree(bad, ignore_errors=True)
        raise UserError(f"the cache {cache / entry} cannot be made or read; remove it by hand")
    except OSError as error:
        raise UserError(f"cannot write to the cache {cache}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(cache: Path, entry: str) -> Path:
    folder = cache / f"{entry}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()  # with the user's umask: others may share the cache
    return folder


def _sweep(cache: Path) -> None:
    """Removes what processes that were killed a day ago left behind."""
    for folder in cache.glob("*.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > 86400:
                shutil.rmtree(folder, ignore_errors=True)
