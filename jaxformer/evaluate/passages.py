"""A folder of text as passages that a question can find: retrieval-augmented generation.

Lewis 2020, with passages as Karpukhin 2020 cuts them (about 100 words), and one sentence encoder
for both sides. N passages, D width of a vector, U bytes of all passages, Q questions.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import UserError
from jaxformer.evaluate import datastore, embed, stored

TEMPLATE = "{passages}\n\n{question}"
HOLES = ("{passages}", "{question}")
COMMAND = "index"  # of jaxformer, which makes these


class Index(NamedTuple):
    """An opened index: vectors_ND of length 1; text_U holds the passages, one after the other.

    place_N4: each passage's first byte, the byte after its last, its file's number, and its line.
    """

    vectors_ND: np.ndarray
    text_U: np.ndarray
    place_N4: np.ndarray
    files: list[str]
    meta: dict[str, Any]


class Found(NamedTuple):
    """A passage, where it stands, and the cosine of its vector and the question's."""

    text: str
    file: str
    line: int
    score: float


class Made(NamedTuple):
    """How many passages an index has, of how many files, and how many files were skipped."""

    passages: int
    files: int
    skipped: int


def build(
    out: str | Path,
    model: Any,
    params: Any,
    tokenizer: Any,
    folder: str | Path,
    *,
    words: int = 100,
    overlap: int = 20,
    pooling: str = "mean",
    max_length: int = 0,
    batch_size: int = 32,
    encoder: dict[str, str] | None = None,
) -> Made:
    """Writes the passages of a folder's files, and their vectors; neither needs to fit into memory.

    Files that cannot be read or are not UTF-8 text are skipped, hidden ones are not looked at.

    Args:
      out: a new folder.
      model, params, tokenizer: the encoder.
      folder: is searched with all its folders.
      words: of a passage, at most.
      overlap: words that a passage begins with and the one before ends with.
      pooling, max_length, batch_size: see `embed.embed_texts`; questions are read alike.
      encoder: kept in meta.json, to find the encoder again.

    Raises:
      UserError: `out` is there, no text, an overlap that is not below the words.
    """
    folder = Path(folder)
    stored.refuse(out)
    if not 0 <= overlap < words:
        raise UserError(f"--overlap={overlap} must be 0 or more and below --words={words}")
    if not folder.is_dir():
        raise UserError(f"--text={folder} is no folder; give one that holds text files")
    options: dict[str, Any] = {
        "pooling": pooling,
        "max_length": max_length,
        "batch_size": batch_size,
    }
    files: list[str] = []
    skipped = position = count = 0

    def all_passages() -> Iterator[tuple[str, int, int]]:
        nonlocal skipped
        for path in _files(folder):
            text = _text(path)
            if text is None:
                skipped += 1
                continue
            files.append(path.relative_to(folder).as_posix())
            for passage, line in cut(text, words, overlap):
                yield passage, len(files) - 1, line

    with stored.creating(out, "passages") as writer:
        passages = all_passages()
        while block := list(itertools.islice(passages, embed.BLOCK)):
            texts = [text for text, _, _ in block]
            vectors_nD = embed.embed_texts(
                model, params, tokenizer, texts, normalise=True, **options
            )
            coded = [text.encode("utf-8", "replace") for text in texts]
            ends = position + np.cumsum([len(text) for text in coded], dtype=np.int64)
            begins = np.concatenate([[position], ends[:-1]])
            numbers_n2 = np.array([place for _, *place in block], np.int64)
            writer.append("vectors", vectors_nD)
            writer.append("text", np.frombuffer(b"".join(coded), np.uint8))
            writer.append("places", np.column_stack([begins, ends, numbers_n2]).astype(np.int64))
            position, count = int(ends[-1]), count + len(block)
        if not count:
            raise UserError(
                f"--text={folder} has no text to cut into passages; {skipped} of its files are not "
                "UTF-8 text or cannot be read"
            )
        identity = datastore.identity(params, tokenizer)
        reads = {"pooling": pooling, "max_length": max_length}
        writer.meta = {**identity, **reads, "sources": files, "encoder": encoder or {}}
    return Made(count, len(files), skipped)


def cut(text: str, words: int, overlap: int) -> Iterator[tuple[str, int]]:
    """Yields passages of at most so many words, as they stand in the text, and their first lines.

    Each begins with the last `overlap` words of the one before; no passage lies within another.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    line, counted = 1, 0
    for start in range(0, max(1, len(spans) - overlap), words - overlap):
        chosen = spans[start : start + words]
        if chosen:
            begin, end = chosen[0][0], chosen[-1][1]
            line, counted = line + text.count("\n", counted, begin), begin
            yield text[begin:end], line


def _files(folder: Path) -> list[Path]:
    """Returns all files that are not hidden, in the order of their names."""
    found = []
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(at, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _text(path: Path) -> str | None:
    """Returns a file's text; None if it cannot be read or is no text."""
    try:
        text = path.read_bytes().decode("utf-8-sig") if path.is_file() else "\0"
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def open_index(path: str | Path) -> Index:
    """Opens an index.

    Raises:
      UserError: no index, or a damaged one.
    """
    _, arrays, meta = stored.open_folder(path, "passages", COMMAND)
    return Index(arrays["vectors"], arrays["text"], arrays["places"], meta["sources"], meta)


def retrieve(
    path: str | Path,
    index: Index,
    model: Any,
    params: Any,
    tokenizer: Any,
    questions: Sequence[str],
    top: int = 3,
) -> list[list[Found]]:
    """Returns, of each question, the passages with the most alike vectors, the best first.

    Args:
      path: of the index, for messages.
      index: from `open_index`.
      model, params, tokenizer: the encoder that made it.
      questions: Q texts.
      top: how many passages each.

    Raises:
      UserError: another encoder than the index's.
    """
    datastore.check_identity(path, index.meta, params, tokenizer, COMMAND)
    vectors_QD = embed.embed_texts(
        model, params, tokenizer, questions, normalise=True,
        pooling=index.meta["pooling"], max_length=index.meta["max_length"],
    )  # fmt: skip
    top = min(top, len(index.vectors_ND))
    distances_QK, index_QK = datastore.nearest(index.vectors_ND, vectors_QD, top)
    # Of vectors of length 1 the squared distance is 2 - 2 cos.
    return [
        [_found(index, number, 1 - distance / 2) for number, distance in zip(numbers, distances)]
        for numbers, distances in zip(index_QK.tolist(), distances_QK.tolist())
    ]


def _found(index: Index, number: int, score: float) -> Found:
    begin, end, file, line = index.place_N4[number].tolist()
    text = index.text_U[begin:end].tobytes().decode("utf-8", "replace")
    return Found(text, index.files[file], line, score)


def check_template(template: str) -> None:
    """Raises UserError unless the template has one place for passages and one for a question."""
    for hole in HOLES:
        if template.count(hole) != 1:
            raise UserError(
                f"--template={template!r} must hold {HOLES[0]} and {HOLES[1]} once each"
            )


def fill(
    template: str, question: str, found: Sequence[Found], fits: Callable[[str], bool]
) -> tuple[str, list[Found]]:
    """Returns the prompt with as many passages, the best first, as fit, and these passages.

    A first passage that is too long loses its last words; if not even one of them fits, the prompt
    is the question with no passage at all.

    Args:
      template: see `check_template`.
      question, found: what goes into it.
      fits: whether the model can read a prompt and still write.
    """

    def prompt(texts: Sequence[str]) -> str:
        parts = re.split("({passages}|{question})", template)
        filled = {HOLES[0]: "\n\n".join(texts), HOLES[1]: question}
        return "".join(filled.get(part, part) for part in parts)

    for count in range(len(found), 0, -1):
        whole = prompt([passage.text for passage in found[:count]])
        if fits(whole):
            return whole, list(found[:count])
    if found:
        ends = [match.end() for match in re.finditer(r"\S+", found[0].text)]
        low, high = 0, len(ends)  # words that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            if fits(prompt([found[0].text[: ends[middle - 1]]])):
                low = middle
            else:
                high = middle
        if low:
            shorter = found[0]._replace(text=found[0].text[: ends[low - 1]])
            return prompt([shorter.text]), [shorter]
    return question, []
