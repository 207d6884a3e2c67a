"""Tokenizers of a few lines: the bytes of UTF-8, and a table of characters."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from jaxformer.data.tokenizers.base import SPECIALS, Tokenizer
from jaxformer.errors import UserError


class _Plain(Tokenizer):
    """Every character stands for itself, wherever it is."""

    def encode_words(self, rows):
        encoded = []
        for words in rows:
            parts = self.encode_plain(
                [(" " if number else "") + word for number, word in enumerate(words)]
            )
            ends = np.cumsum([len(part) for part in parts], dtype=int).tolist()
            # The blank before a word is no part of it.
            begins = [end - len(part) + bool(n) for n, (end, part) in enumerate(zip(ends, parts))]
            ids = np.concatenate([*parts, np.zeros(0, np.int32)])
            encoded.append((ids, begins, [end - begin for begin, end in zip(begins, ends)]))
        return encoded


class ByteTokenizer(_Plain):
    """The bytes of UTF-8, then the six specials: 262 ids, and no text is unknown.

    Args:
      sentinels: names of more special tokens, behind them.
    """

    def __init__(self, sentinels: tuple[str, ...] = ()):
        names = (*SPECIALS, *sentinels)
        super().__init__(256 + len(names), {name: 256 + i for i, name in enumerate(names)})

    def encode_plain(self, texts):
        return [
            np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)
            for text in texts
        ]

    def encode_spans(self, texts):
        encoded = []
        for text, ids in zip(texts, self.encode_plain(texts)):
            lengths = [len(character.encode("utf-8", "replace")) for character in text]
            begin = np.repeat(np.arange(len(text), dtype=np.int32), lengths)
            encoded.append((ids, np.stack([begin, begin + 1], axis=1)))
        return encoded

    def decode_plain(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def _add_sentinels(self, names):
        return ByteTokenizer(tuple(names))

    def to_json(self):
        sentinels = list(self.specials)[len(SPECIALS) :]
        return json.dumps({"jaxformer": "byte", **({"sentinels": sentinels} if sentinels else {})})


class CharTokenizer(_Plain):
    """One id for each of the given characters, in their order, after the specials if any.

    Args:
      characters: the vocabulary.
      with_specials: whether ids 0 … 5 are the six specials.
      sentinels: names of more special tokens, behind the characters.
    """

    characters: str

    def __init__(
        self, characters: str, with_specials: bool = False, sentinels: tuple[str, ...] = ()
    ):
        first = SPECIALS if with_specials else ()
        specials = {name: i for i, name in enumerate(first)}
        specials |= {name: len(first) + len(characters) + i for i, name in enumerate(sentinels)}
        super().__init__(len(specials) + len(characters), specials)
        object.__setattr__(self, "characters", characters)

    @functools.cached_property
    def _first(self) -> int:
        return len(SPECIALS) if SPECIALS[0] in self.specials else 0

    @functools.cached_property
    def _table(self) -> np.ndarray:
        codes = np.array([ord(c) for c in self.characters], np.int64)
        table = np.full(max(codes, default=0) + 2, -1, np.int32)  # the last entry: beyond the table
        table[codes] = np.arange(len(codes), dtype=np.int32) + self._first
        return table

    def encode_plain(self, texts):
        encoded = []
        for text in texts:
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            ids = self._table[np.minimum(codes, len(self._table) - 1)]
            if ids.size and ids.min() < 0:
                if self.unk_id < 0:
                    character = text[int(np.argmax(ids < 0))]
                    raise UserError(
                        f"the character {character!r} (U+{ord(character):04X}) is not among the "
                        f"{len(self.characters)} of this character tokenizer, which has no [UNK]; "
                        "leave it out, or train with tokenizer 'byte'"
                    )
                ids = np.where(ids < 0, np.int32(self.unk_id), ids)
            encoded.append(ids)
        return encoded

    def encode_spans(self, texts):
        begins = [np.arange(len(text), dtype=np.int32) for text in texts]
        spans = [np.stack([begin, begin + 1], axis=1) for begin in begins]
        return list(zip(self.encode_plain(texts), spans))

    def decode_plain(self, ids):
        return "".join(self.characters[i - self._first] for i in ids)

    def _add_sentinels(self, names):
        return CharTokenizer(self.characters, bool(self._first), tuple(names))

    def to_json(self):
        sentinels = [name for name in self.specials if name not in SPECIALS]
        content: dict[str, Any] = {
            "jaxformer": "char",
            "characters": self.characters,
            "with_specials": bool(self._first),
        }
        return json.dumps({**content, **({"sentinels": sentinels} if sentinels else {})})
