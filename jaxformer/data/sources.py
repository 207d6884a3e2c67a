"""Where documents come from: the standard library, text files, rows of files, Hugging Face."""

from __future__ import annotations

import collections
import csv
import dataclasses
import glob
import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.config import Config
from jaxformer.errors import UserError, suggest

# Folders of the standard library that are tests or not part of it.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
ROWS = (".jsonl", ".csv", ".tsv")
# A package is a class if it has enough text: files, so that both splits have some, and bytes.
PACKAGE_FILES, PACKAGE_BYTES = 8, 1 << 17


class Document(NamedTuple):
    """One text; `key` is a hash of where it comes from, by which it goes to a split."""

    text: str
    key: int
    pair: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a config's documents are, known without opening a file.

    Attributes:
      name: as the user gave it, for messages.
      kind: "text" (a file is a document), "rows" (a row is one) or "hf".
      files: the files, in reading order.
      names: their paths below the folder that they share; what splits and packages go by.
    """

    name: str
    kind: str
    files: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()

    def stat_key(self) -> list:
        """Returns what changes when a file changes, without reading any."""
        stats = [(str(f), f.stat()) for f in self.files]
        return [self.name, self.kind, [(p, s.st_size, s.st_mtime_ns) for p, s in stats]]

    def size(self) -> int:
        """Returns the bytes of all files; 0 for a data set that is not made of files."""
        return sum(file.stat().st_size for file in self.files)

    def content_key(self) -> list:
        """Returns what changes when the content changes, on whatever machine."""
        hashes = []
        for file, name in zip(self.files, self.names):
            with open(file, "rb") as stream:
                hashes.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
        return [self.kind, hashes] if self.files else [self.kind, self.name]


def find(name: str, config: Config) -> Source:
    """Finds the files of a source, within the config's limits.

    Raises:
      UserError: nothing there.
    """
    if name.startswith("hf:"):
        return _unpackaged(Source(name, "hf"), config)
    if name == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [Path(folder, file) for folder, file in _walk(root) if file.endswith(".py")]
        if not files:
            raise UserError(f"data.source='stdlib': this Python has no source files in {root}")
    else:
        pattern = os.path.expanduser(name)
        if os.path.isdir(pattern):
            raise UserError(
                f"data.source={name!r} is a folder; give a glob such as "
                f"'{name.rstrip('/')}/**/*.txt'"
            )
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [Path(file) for file in sorted(found) if os.path.isfile(file)]
        if not files:
            raise UserError(f"data.source={name!r}: no such file{_neighbour(pattern)}")
        root = Path(os.path.commonpath([file.resolve().parent for file in files]))
        files = [file.resolve() for file in files]
    rows = bool(config.fields or config.delimiter) or _suffix(files[0]) in ROWS
    source = Source(
        name,
        "rows" if rows and name != "stdlib" else "text",
        tuple(files),
        tuple(file.relative_to(root).as_posix() for file in files),
    )
    return _limit(source, config) if source.kind == "text" else _unpackaged(source, config)


def _unpackaged(source: Source, config: Config) -> Source:
    if config.labels == "package":
        raise UserError(
            f"data.labels='package' tells files' folders, but {source.name!r} is not one document "
            "a file; use data.labels='field'"
        )
    return source


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in NOT_LIBRARY and "config-" not in f)
        yield from ((folder, file) for file in sorted(files))


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _neighbour(path: str) -> str:
    folder = os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return suggest(os.path.basename(path), names)


def package(name: str) -> str:
    """Returns the topmost folder of a file's name, "" for a file outside of all folders."""
    return name.split("/", 1)[0] if "/" in name else ""


def _limit(source: Source, config: Config) -> Source:
    """Keeps the files that the limits, and the packages that are classes, leave."""
    pairs = list(zip(source.files, source.names))
    if config.labels == "package":
        files = collections.Counter(package(name) for _, name in pairs)
        sizes: collections.Counter[str] = collections.Counter()
        for file, name in pairs:
            sizes[package(name)] += file.stat().st_size
        kept = {p for p in files if p and files[p] >= PACKAGE_FILES and sizes[p] >= PACKAGE_BYTES}
        if len(kept) < 2:
            raise UserError(
                f"data.labels='package': {source.name!r} has {len(kept)} folders with at least "
                f"{PACKAGE_FILES} files and {PACKAGE_BYTES} bytes; classes need two or more"
            )
        pairs = [(file, name) for file, name in pairs if package(name) in kept]
    pairs = pairs[: config.max_documents or None]
    if config.max_bytes:
        total, count = 0, 0
        while count < len(pairs) and total < config.max_bytes:
            total += pairs[count][0].stat().st_size
            count += 1
        pairs = pairs[:count]
    return dataclasses.replace(
        source, files=tuple(f for f, _ in pairs), names=tuple(n for _, n in pairs)
    )


def key(text: str) -> int:
    """Returns 64 bits of a hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def read(source: Source, config: Config) -> Iterator[Document]:
    """Yields the documents in order: none is empty; cut to snippets and limited as configured.

    Raises:
      UserError: a file that cannot be read, a field that it does not have.
    """
    reader = {"text": _texts, "rows": _rows, "hf": _hugging_face}[source.kind]
    budget = config.max_bytes
    # The files of a text source are limited before, in `find`.
    most = config.max_documents if source.kind != "text" else 0
    for document in itertools.islice(reader(source, config), most or None):
        if config.max_bytes:
            size = len(document.text.encode("utf-8", "replace"))
            if size > budget:  # "ignore": the cut may fall within a character
                text = document.text.encode("utf-8", "replace")[:budget].decode("utf-8", "ignore")
                document = document._replace(text=text)
            budget -= size
        for snippet in _snippets(document, config.snippet_lines):
            if snippet.text and (source.kind == "text" or not snippet.text.isspace()):
                yield snippet
        if config.max_bytes and budget <= 0:
            return


def _snippets(document: Document, lines: int) -> Iterator[Document]:
    if not lines:
        yield document
        return
    parts = document.text.splitlines(keepends=True)
    for start in range(0, len(parts), lines):
        text = "".join(parts[start : start + lines])
        if not text.isspace():
            yield document._replace(text=text)


def _texts(source: Source, config: Config) -> Iterator[Document]:
    for file, name in zip(source.files, source.names):
        label = package(name) if config.labels == "package" else ""
        yield Document(_content(file), key(name), label=label)


def _content(file: Path) -> str:
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.name.endswith(".gz") else data
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n")


def _rows(source: Source, config: Config) -> Iterator[Document]:
    for file in source.files:
        parse = _json_lines if _suffix(file) == ".jsonl" else _table
        for number, row in parse(file, config):
            yield _document(row, config, f"{file}:{number}")


def _lines(file: Path) -> Iterator[str]:
    """Yields the lines of a file with their ends, however long the file."""
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="\n") as stream:
            yield from stream
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}") from None


def _json_lines(file: Path, config: Config) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number} is not a JSON object with named fields")
            yield number, row


def _table(file: Path, config: Config) -> Iterator[tuple[int, dict]]:
    names = list(config.fields)
    rows: Iterator[list[str]]
    if _suffix(file) == ".csv" and not config.delimiter:
        rows = csv.reader(_lines(file))
    else:  # no quoting: a quotation mark is a character like others
        lines = (line.rstrip("\r\n") for line in _lines(file))
        # The last column may hold the delimiter.
        rows = (
            line.split(config.delimiter or "\t", len(names) - 1 if names else -1) if line else []
            for line in lines
        )
    for number, row in enumerate(rows, 1):
        if not names:
            names = [name.strip() for name in row]
        elif row:
            if len(row) < len(names):
                raise UserError(
                    f"{file}:{number} has {len(row)} columns, not {len(names)} "
                    f"({', '.join(names)}); name a headerless file's columns with data.fields"
                )
            yield number, dict(zip(names, row))


def _document(row: dict[str, Any], config: Config, where: str) -> Document:
    def field(option: str) -> str:
        name = getattr(config, option)
        if name not in row:
            raise UserError(
                f"{where} has no field {name!r} (data.{option}); its fields: "
                f"{', '.join(map(str, row))}{suggest(name, map(str, row))}"
            )
        if row[name] is None or isinstance(row[name], (dict, list)):
            raise UserError(
                f"{where}: field {name!r} (data.{option}) holds "
                f"{type(row[name]).__name__}, not a text"
            )
        return str(row[name])

    text = field("text_field")
    pair = field("text_pair_field") if config.text_pair_field else ""
    label = field("label_field").strip() if config.labels == "field" else ""
    return Document(text, key(f"{text}\0{pair}"), pair, label)


def _hugging_face(source: Source, config: Config) -> Iterator[Document]:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"data.source={source.name!r} needs the package datasets: pip install 'jaxformer[hf]'"
        )
    import datasets

    path, _, split = source.name.removeprefix("hf:").partition("@")
    name, _, subset = path.partition(":")
    try:
        rows = datasets.load_dataset(
            name, subset or None, split=split or "train", streaming=config.hf_streaming
        )
        for number, row in enumerate(rows):
            yield _document(row, config, f"{source.name} row {number}")
    except UserError:
        raise
    except Exception as error:  # the hub raises dozens of kinds, most of them offline
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {source.name}: {type(error).__name__}: {reason}") from None
