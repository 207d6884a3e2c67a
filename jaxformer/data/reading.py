"""One document, and text files read as documents, one by one or line by line in pairs."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data import sources
from jaxformer.data.config import Config
from jaxformer.data.sources import Source
from jaxformer.errors import UserError


class Document(NamedTuple):
    """One text, or pair of texts, and what is known of it.

    Attributes:
      text: the text; a source; a question.
      key: a hash of where it comes from, by which it goes to a split.
      pair: the second text; the target; the context.
      label: its class or number.
      words: the words of a text that has tags.
      tags: a name for each word.
      name: a question's id.
      answers: (first character in the context, text) of each answer; none: it has none.
    """

    text: str
    key: int
    pair: str = ""
    label: str = ""
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    name: str = ""
    answers: tuple[tuple[int, str], ...] = ()


def texts(source: Source, config: Config) -> Iterator[Document]:
    """Yields files as documents."""
    for file, name in zip(source.files, source.names):
        label = sources.package(name) if config.labels == "package" else ""
        yield Document(content(file), sources.key(name), label=label)


def content(file: Path) -> str:
    """Returns the text of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.name.endswith(".gz") else data
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n")


def lines(file: Path) -> Iterator[str]:
    """Yields the lines of a file with their ends, however long the file.

    Raises:
      UserError: it cannot be read.
    """
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="\n") as stream:
            yield from stream
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}") from None


def parallel(source: Source, config: Config) -> Iterator[Document]:
    """Yields line i of a source's file with line i of its target's file.

    Raises:
      UserError: the two files have different numbers of lines.
    """
    half = len(source.files) // 2
    for both in zip(source.files[:half], source.files[half:]):
        counts = [0, 0]
        for pair in itertools.zip_longest(*map(lines, both)):
            counts = [count + (line is not None) for count, line in zip(counts, pair)]
            if None not in pair:
                text, target = (line.rstrip("\r\n") for line in pair)
                yield translation(text, target, config)
        if counts[0] != counts[1]:
            raise UserError(
                f"{both[0]} has {counts[0]:,} lines, but {both[1]} has {counts[1]:,}; "
                "line i of the one must belong to line i of the other"
            )


def translation(source: str, target: str, config: Config) -> Document:
    """Returns a source with its prefix, and its target."""
    return Document(config.source_prefix + source, sources.key(f"{source}\0{target}"), target)
