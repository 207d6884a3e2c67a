"""Documents into the arrays that an entry of the cache holds, one way for each form of data.

| form | a stretch of the stream | Corpus.more |
|---|---|---|
| stream | a document and <eos> | |
| texts | a text and its pair | |
| seq2seq | a source and its target | |
| tags | a sentence | tags_N: each word's at its first token, else -1 |
| qa | a question; the first on a context also has the context | spans_N2, context_J, answer_J2 |
| sentences | a sentence | document_J: to which it belongs |

N tokens, J stretches. Of questions: the characters of each token, the stretch that has the context,
the characters of the first answer (-1 for none).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxformer.data.config import SEQ2SEQ, Config
from jaxformer.data.reading import Document
from jaxformer.data.tokenizers import Tokenizer

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")


class Encoded(NamedTuple):
    """What cache.Writer.add takes."""

    parts: list[np.ndarray]
    first: list[int]
    labels: list[int] | list[float]
    size: int
    counted: list[np.ndarray] | None
    more: dict[str, np.ndarray]


class Names:
    """Classes or tags, numbered as they come; in the end by name."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Returns the number of a name until all are known."""
        return self.ids.setdefault(name, len(self.ids))

    def sorted(self) -> list[str]:
        """Returns the names in their order: "2" before "10", and words as they are."""
        return sorted(self.ids, key=_natural)

    def renumber(self, numbers: np.ndarray) -> np.ndarray:
        """Returns, for what `number` gave, the places in `sorted()`; -1 stays."""
        places = {name: place for place, name in enumerate(self.sorted())}
        return np.array([*(places[name] for name in self.ids), -1], np.int32)[numbers]


def _natural(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def form(config: Config) -> str:
    """Returns which row of the table a config's data are."""
    if config.labels == "tags":
        return "tags"
    if config.layout in SEQ2SEQ:
        return "seq2seq"
    by_layout = {"padded": "texts", "qa": "qa", "sentence_pairs": "sentences"}
    return by_layout.get(config.layout, "stream")


def encoder(
    config: Config, tokenizer: Tokenizer, names: Names
) -> Callable[[list[Document]], Encoded]:
    """Returns what encodes the documents of one split, a batch after the other."""
    kind = form(config)
    if kind == "qa":
        return _Questions(tokenizer)
    if kind == "sentences":
        return _Sentences(tokenizer)
    if kind == "tags":
        return lambda documents: _tags(tokenizer, names, documents)
    return lambda documents: _texts(config, tokenizer, names, documents, kind)


def _bytes(texts: list[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _texts(
    config: Config, tokenizer: Tokenizer, names: Names, documents: list[Document], kind: str
) -> Encoded:
    firsts = tokenizer.encode_batch([document.text for document in documents])
    parts, counted = firsts, None
    end = np.array([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [], np.int32)
    size = _bytes([document.text + document.pair for document in documents])
    if config.text_pair_field or kind == "seq2seq":
        seconds = tokenizer.encode_batch([document.pair for document in documents])
        parts = [np.concatenate(both) for both in zip(firsts, seconds)]
        if kind == "seq2seq":  # a model predicts the target, and its end
            counted = [np.append(second, end) for second in seconds]
            size = _bytes([document.pair for document in documents])
    elif kind == "stream":
        parts = [np.append(part, end) for part in parts]
    labels: list[int] | list[float] = [-1] * len(documents)
    if config.labels == "value":
        labels = [float(document.label) for document in documents]
    elif config.labels:
        labels = [names.number(document.label) for document in documents]
    return Encoded(parts, [len(first) for first in firsts], labels, size, counted, {})


def _tags(tokenizer: Tokenizer, names: Names, documents: list[Document]) -> Encoded:
    parts, tags = [], []
    rows = tokenizer.encode_words([document.words for document in documents])
    for document, (ids, begins, counts) in zip(documents, rows):
        row = np.full(len(ids), -1, np.int32)
        for tag, begin, count in zip(document.tags, begins, counts):
            if count:
                row[begin] = names.number(tag)
        parts.append(ids)
        tags.append(row)
    size = _bytes([document.text for document in documents])
    lengths = [len(part) for part in parts]
    return Encoded(parts, lengths, [-1] * len(parts), size, None, {"tags_N": np.concatenate(tags)})


class _Questions:
    """Questions on one context stand together: each context is encoded once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.count = 0
        self.context, self.place = "", -1  # the last context, and the stretch that has it

    def __call__(self, documents: list[Document]) -> Encoded:
        places, texts = [], []
        for number, document in enumerate(documents, self.count):
            new = self.place < 0 or document.pair != self.context
            if new:
                self.context, self.place = document.pair, number
            places.append(self.place)
            texts.append(document.pair if new else "")
        self.count += len(documents)
        questions = self.tokenizer.encode_spans([document.text for document in documents])
        contexts = self.tokenizer.encode_spans(texts)
        first = [document.answers[:1] for document in documents]
        answers = [[(begin, begin + len(text)) for begin, text in one] or [(-1, -1)]
                   for one in first]  # fmt: skip
        return Encoded(
            [np.concatenate([q, c]) for (q, _), (c, _) in zip(questions, contexts)],
            [len(ids) for ids, _ in questions],
            [-1] * len(documents),
            _bytes([document.text for document in documents] + texts),
            None,
            {
                "spans_N2": np.concatenate(
                    [np.concatenate([q, c]) for (_, q), (_, c) in zip(questions, contexts)]
                ),
                "context_J": np.array(places, np.int64),
                "answer_J2": np.array(answers, np.int32).reshape(-1, 2),
            },
        )


class _Sentences:
    """Sentences, each with the number of its document."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.count = 0

    def __call__(self, documents: list[Document]) -> Encoded:
        texts, owners = [], []
        for document in documents:
            for part in re.split(r"\n\s*\n", document.text):
                found = [sentence.strip() for sentence in SENTENCE.split(part)]
                found = [sentence for sentence in found if sentence]
                texts += found
                owners += [self.count] * len(found)
                self.count += bool(found)
        parts = self.tokenizer.encode_batch(texts)
        kept = [i for i, part in enumerate(parts) if len(part)]
        parts = [parts[i] for i in kept]
        more = {"document_J": np.array([owners[i] for i in kept], np.int64)}
        lengths = [len(part) for part in parts]
        return Encoded(parts, lengths, [-1] * len(parts), _bytes(texts), None, more)
