"""Reads a source, of whatever kind, within the limits of the config."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from jaxformer.data import annotated, reading, records, sources, synthetic
from jaxformer.data.config import SEQ2SEQ, Config
from jaxformer.data.reading import Document
from jaxformer.data.sources import Source

READERS: dict[str, Callable[[Source, Config], Iterator[Document]]] = {
    "text": reading.texts,
    "parallel": reading.parallel,
    "rows": records.rows,
    "hf": records.hugging_face,
    "conll": annotated.sentences,
    "squad": annotated.questions,
    "made": lambda source, config: made(synthetic.parse(source.name)),
}


def made(asked: synthetic.Made) -> Iterator[Document]:
    """Yields the texts of a synthetic task; equal ones have one key, and so go to one split."""
    for text, label in asked.examples():
        yield Document(text, sources.key(text), label=label)


def read(source: Source, config: Config) -> Iterator[Document]:
    """Yields the documents in order: none is empty; cut to snippets and limited as configured.

    Raises:
      UserError: a file that cannot be read, a field that it does not have.
    """
    budget = config.max_bytes
    # The files of a text source are limited before, in `find`.
    most = config.max_documents if source.kind != "text" else 0
    whole = config.layout in (*SEQ2SEQ, "qa") or config.labels == "tags"
    for document in itertools.islice(READERS[source.kind](source, config), most or None):
        if config.max_bytes:
            size = len(document.text.encode("utf-8", "replace"))
            if size > budget:
                if whole:  # what belongs to the text would no longer fit it
                    return
                # "ignore": the cut may fall within a character.
                text = document.text.encode("utf-8", "replace")[:budget].decode("utf-8", "ignore")
                document = document._replace(text=text)
            budget -= size
        if config.layout in SEQ2SEQ and not document.pair.strip():
            continue
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
