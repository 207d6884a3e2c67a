"""Files of two published forms: CoNLL (a word and its tag a line) and SQuAD (questions)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxformer.data.config import Config
from jaxformer.data.reading import Document, content, lines
from jaxformer.data.records import question_document, tagged
from jaxformer.data.sources import Source
from jaxformer.errors import UserError, suggest


def sentences(source: Source, config: Config) -> Iterator[Document]:
    """Yields the sentences of CoNLL files (Tjong Kim Sang and De Meulder 2003).

    A line is a word and its tag, the first and the last of its columns (or those that data.fields
    names data.text_field and data.label_field); an empty line ends a sentence.

    Raises:
      UserError: a line with one column only, or without the named ones.
    """
    word, tag = _columns(config)
    for file in source.files:
        waiting: list[tuple[str, str]] = []
        for number, line in enumerate([*lines(file), ""], 1):
            columns = line.split(config.delimiter or None)
            if not columns or columns[0] == "-DOCSTART-":
                if waiting:
                    words, tags = zip(*waiting)
                    yield tagged(words, tags, f"{file}:{number}")
                waiting = []
                continue
            if len(columns) < max(2, len(config.fields)):
                raise UserError(
                    f"{file}:{number} has {len(columns)} columns, not "
                    f"{max(2, len(config.fields))}: a word, …, its tag"
                )
            waiting.append((columns[word].strip(), columns[tag].strip()))


def _columns(config: Config) -> tuple[int, int]:
    if not config.fields:
        return 0, -1
    places = []
    for option, usual in (("text_field", ("text", "tokens")), ("label_field", ("label", "tags"))):
        names = usual if getattr(config, option) == usual[0] else (getattr(config, option),)
        found = [config.fields.index(name) for name in names if name in config.fields]
        if not found:
            raise UserError(
                f"data.{option}={names[0]!r} is not among data.fields "
                f"({', '.join(config.fields)}){suggest(names[0], config.fields)}"
            )
        places.append(found[0])
    return places[0], places[1]


def questions(source: Source, config: Config) -> Iterator[Document]:
    """Yields the questions of files in SQuAD's form (Rajpurkar et al. 2016; version 2.0 with
    questions that have no answer, 2018).

    Raises:
      UserError: a file of another form; an answer that is not in its context.
    """
    for file in source.files:
        try:
            articles = json.loads(content(file))["data"]
            for article in articles:
                for paragraph in article["paragraphs"]:
                    for question in paragraph["qas"]:
                        yield _question(article, paragraph, question, str(file))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is not a JSON file in SQuAD's form (data, paragraphs, qas): "
                f"{type(error).__name__} {error}"
            ) from None


def _question(article: Any, paragraph: Any, question: Any, where: str) -> Document:
    impossible = question.get("is_impossible", False)
    return question_document(
        article.get("title") or "",
        paragraph["context"],
        str(question["id"]),
        question["question"],
        [] if impossible else question.get("answers", []),
        where,
    )
