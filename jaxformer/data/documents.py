"""Reads a source: text files, rows of tables and JSON lines, Hugging Face data sets."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data import sources
from jaxformer.data.config import Config
from jaxformer.data.sources import Source
from jaxformer.errors import UserError, suggest


class Document(NamedTuple):
    """One text; `key` is a hash of where it comes from, by which it goes to a split."""

    text: str
    key: int
    pair: str = ""
    label: str = ""


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
        label = sources.package(name) if config.labels == "package" else ""
        yield Document(_content(file), sources.key(name), label=label)


def _content(file: Path) -> str:
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.name.endswith(".gz") else data
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n")


def _rows(source: Source, config: Config) -> Iterator[Document]:
    for file in source.files:
        parse = _json_lines if sources.suffix(file) == ".jsonl" else _table
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
    if sources.suffix(file) == ".csv" and not config.delimiter:
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
    return Document(text, sources.key(f"{text}\0{pair}"), pair, label)


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
