"""Rows with named fields as documents: JSON lines, tables, Hugging Face data sets."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.data import sources
from jaxformer.data.config import SEQ2SEQ, Config
from jaxformer.data.reading import Document, lines, translation
from jaxformer.data.sources import Source
from jaxformer.errors import UserError, suggest


def rows(source: Source, config: Config) -> Iterator[Document]:
    """Yields the rows of files.

    Raises:
      UserError: a file that cannot be read, a field that a row lacks or that holds something else.
    """
    for file in source.files:
        parse = _json_lines if sources.suffix(file) == ".jsonl" else _table
        for number, row in parse(file, config):
            yield document(row, config, f"{file}:{number}")


def _json_lines(file: Path, config: Config) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines(file), 1):
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
    parts: Iterator[list[str]]
    if sources.suffix(file) == ".csv" and not config.delimiter:
        parts = csv.reader(lines(file))
    else:  # no quoting: a quotation mark is a character like others
        bare = (line.rstrip("\r\n") for line in lines(file))
        # The last column may hold the delimiter.
        parts = (
            line.split(config.delimiter or "\t", len(names) - 1 if names else -1) if line else []
            for line in bare
        )
    for number, row in enumerate(parts, 1):
        if not names:
            names = [name.strip() for name in row]
        elif row:
            if len(row) < len(names):
                raise UserError(
                    f"{file}:{number} has {len(row)} columns, not {len(names)} "
                    f"({', '.join(names)}); name a headerless file's columns with data.fields"
                )
            yield number, dict(zip(names, row))


def document(row: dict[str, Any], config: Config, where: str) -> Document:
    """Returns a row as the document that the config asks for; `where` is for messages."""
    if config.layout == "qa":
        return _question(row, where)
    if config.labels == "tags":
        return _tagged(row, config, where)
    text = _text(row, config.text_field, "text_field", where)
    if config.layout in SEQ2SEQ:
        target = _text(row, config.target_field, "target_field", where)
        return translation(text, target, config)
    pair, label = "", ""
    if config.text_pair_field:
        pair = _text(row, config.text_pair_field, "text_pair_field", where)
    if config.labels in ("field", "value"):
        label = _text(row, config.label_field, "label_field", where).strip()
    if config.labels == "value":
        _check_number(label, f"{where}: field {config.label_field!r} (data.label_field)")
    return Document(text, sources.key(f"{text}\0{pair}"), pair, label)


def _field(row: dict[str, Any], name: str, option: str, where: str) -> Any:
    """Returns a field, or of "a.b" field b of field a."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = [str(key) for key in (value if isinstance(value, dict) else row)]
            raise UserError(
                f"{where} has no field {name!r} (data.{option}); its fields: "
                f"{', '.join(known)}{suggest(name, known)}"
            )
        value = value[part]
    return value


def _text(row: dict[str, Any], name: str, option: str, where: str) -> str:
    value = _field(row, name, option, where)
    if value is None or isinstance(value, (dict, list)):
        raise UserError(
            f"{where}: field {name!r} (data.{option}) holds {type(value).__name__}, not a text"
        )
    return str(value)


def _check_number(text: str, where: str) -> None:
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        finite = False
    if not finite:
        raise UserError(
            f"{where} holds {text!r}, not a number; for classes set data.labels='field'"
        )


def _tagged(row: dict[str, Any], config: Config, where: str) -> Document:
    usual = {"text_field": ("text", "tokens"), "label_field": ("label", "tags")}
    found = []
    for option, (plain, other) in usual.items():
        name = getattr(config, option)
        name = other if name == plain and (other in row or plain not in row) else name
        value = _field(row, name, option, where)
        if not isinstance(value, list):
            raise UserError(
                f"{where}: data.labels='tags' wants a list of words and a list of tags, but the "
                f"field of data.{option} holds {type(value).__name__}"
            )
        found.append(tuple(map(str, value)))
    return tagged(found[0], found[1], where)


def tagged(words: tuple[str, ...], tags: tuple[str, ...], where: str) -> Document:
    """Returns a sentence whose words have tags; `where` is for messages."""
    if len(words) != len(tags):
        raise UserError(f"{where} has {len(words)} words, but {len(tags)} tags")
    text = " ".join(words)
    return Document(text, sources.key(text), words=words, tags=tags)


def _question(row: dict[str, Any], where: str) -> Document:
    """Returns a question of a data set in the form that SQuAD has there."""
    question, context = (_text(row, name, name, where) for name in ("question", "context"))
    given = row.get("answers") or {}
    try:
        starts, found = given.get("answer_start", []), given.get("text", [])
        answers = [{"answer_start": s, "text": t} for s, t in zip(starts, found, strict=True)]
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f"{where}: field 'answers' must be {{'answer_start': [numbers], 'text': [texts]}}"
        ) from None
    title = str(row.get("title") or "")
    name = str(row.get("id", where))
    return question_document(title, context, name, question, answers, where)


def question_document(
    title: str, context: str, name: str, question: str, answers: list[dict], where: str
) -> Document:
    """Returns a question about a context. Questions on one article (or, where it has no title, on
    one context) have one key: none is in training whose context is in validation.

    Raises:
      UserError: an answer that does not stand in the context where it says.
    """
    found = []
    for answer in answers:
        try:
            begin, text = int(answer["answer_start"]), str(answer["text"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{where}: an answer of question {name!r} lacks answer_start or text"
            ) from None
        if begin < 0 or context[begin : begin + len(text)] != text:
            raise UserError(
                f"{where}: the answer {text[:40]!r} of question {name!r} does not stand at "
                f"character {begin} of its context"
            )
        if text:
            found.append((begin, text))
    key = sources.key(title or context)
    return Document(question, key, context, name=name, answers=tuple(found))


def hugging_face(source: Source, config: Config) -> Iterator[Document]:
    """Yields the rows of a Hugging Face data set.

    Raises:
      UserError: the package is not there, or it cannot load the data set.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"data.source={source.name!r} needs the package datasets: pip install 'jaxformer[hf]'"
        )
    import datasets

    path, _, split = source.name.removeprefix("hf:").partition("@")
    name, _, subset = path.partition(":")
    try:
        found = datasets.load_dataset(
            name, subset or None, split=split or "train", streaming=config.hf_streaming
        )
        for number, row in enumerate(found):
            yield document(row, config, f"{source.name} row {number}")
    except UserError:
        raise
    except Exception as error:  # the hub raises dozens of kinds, most of them offline
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load {source.name}: {type(error).__name__}: {reason}") from None
