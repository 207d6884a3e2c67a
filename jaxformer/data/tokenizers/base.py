"""What every tokenizer can do, the names of special tokens, and what stands around a text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.errors import UserError

# The six special tokens of every tokenizer that is made here, in the order of their ids.
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<eos>")
# What published tokenizers call them; the first name that a vocabulary has is taken.
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
}
SENTINEL = "<extra_id_{}>"  # what stands for a span that was taken out (Raffel 2020)


class Template(NamedTuple):
    """The special tokens around a text: prefix a suffix, or prefix a middle b suffix.

    The types are token types, of the tokens of the prefix, of the first text, and so on.
    """

    prefix: tuple[int, ...] = ()
    middle: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    prefix_types: tuple[int, ...] = ()
    first_type: int = 0
    middle_types: tuple[int, ...] = ()
    second_type: int = 0
    suffix_types: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """How many special tokens a row has."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def typed(self) -> bool:
        """Whether types tell anything: not all of them are 0."""
        types = (*self.prefix_types, *self.middle_types, *self.suffix_types)
        return any((*types, self.first_type, self.second_type))


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. The subclasses say how a text without special tokens is encoded.

    Attributes:
      vocab_size: ids are 0 … vocab_size - 1; a published vocabulary may leave some of them out.
      specials: special tokens' names → ids.
    """

    vocab_size: int
    specials: dict[str, int]

    def encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids [n] int32 of each text; a special token's name in it is mere text."""
        raise NotImplementedError

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns, of each text, the ids [n] and where in it each token stands: [n, 2] int32, its
        first character and one more than its last, without blanks at its ends."""
        raise NotImplementedError

    def encode_words(
        self, rows: Sequence[Sequence[str]]
    ) -> list[tuple[np.ndarray, list[int], list[int]]]:
        """Encodes texts that are cut into words, each word by itself.

        Returns:
          Of each row: the ids [n] int32; where in them each word's tokens begin, one entry a word;
          and how many tokens each has (0 for a word of which the tokenizer leaves nothing).
        """
        raise NotImplementedError

    def decode_plain(self, ids: Sequence[int]) -> str:
        """Returns the text of ids that are not special."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns what `load` reads."""
        raise NotImplementedError

    def with_sentinels(self, count: int) -> Tokenizer:
        """Returns the tokenizer with <extra_id_0> … <extra_id_{count - 1}> behind all other ids,
        <extra_id_0> the last; itself if it has so many.

        Raises:
          UserError: it has some, but fewer.
        """
        have = len(self.sentinel_ids)
        if have >= count:
            return self
        if have:
            raise UserError(
                f"data.extra_ids={count}: the tokenizer has {have} sentinels (<extra_id_0> …); "
                f"set it to {have} or less"
            )
        return self._add_sentinels([SENTINEL.format(i) for i in reversed(range(count))])

    def _add_sentinels(self, names: list[str]) -> Tokenizer:
        raise NotImplementedError

    @property
    def templates(self) -> tuple[Template, Template] | None:
        """What the tokenizer's file says of one text and of a pair; None: nothing."""
        return None

    def template(self, pair: bool = False) -> Template:
        """Returns the special tokens that belong around one text, or around a pair of texts: what
        a published tokenizer's file says, else [CLS] a [SEP] and [CLS] a [SEP] b [SEP] with types
        0 and 1, without those of the two that there are not."""
        if self.templates is not None:
            return self.templates[pair]
        cls = (self.cls_id,) if self.cls_id >= 0 else ()
        sep = (self.sep_id,) if self.sep_id >= 0 else ()
        if not pair:
            return Template(cls, (), sep, (0,) * len(cls), suffix_types=(0,) * len(sep))
        zeros, ones = (0,) * len(sep), (1,) * len(sep)
        return Template(cls, sep, sep, (0,) * len(cls), 0, zeros, 1, ones)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Returns the ids of `text`; nothing is added at its ends.

        Args:
          text: any text.
          specials: whether a special token's name in the text, e.g. "[MASK]", means that token.
            Never set it for text of a stranger: it could end a document, or mask itself.

        Raises:
          UserError: a character that the vocabulary lacks, where there is no [UNK].
        """
        if not specials or not self.specials:
            return self.encode_plain([text])[0].tolist()
        names = sorted(self.specials, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            if part in self.specials:
                ids.append(self.specials[part])
            elif part:
                ids.extend(self.encode_plain([part])[0].tolist())
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids [n] int32 of each text, as `encode` gives them."""
        return self.encode_plain(texts)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Returns the text of `ids`; special tokens are left out, or named if `specials`."""
        names = {index: name for name, index in self.specials.items()}
        text, run = [], []
        for index in (int(i) for i in ids):
            if not 0 <= index < self.vocab_size:
                raise UserError(
                    f"token id {index} is outside the vocabulary of {self.vocab_size} tokens"
                )
            if index not in names:
                run.append(index)
            elif specials:
                text += [self.decode_plain(run), names[index]]
                run = []
        return "".join([*text, self.decode_plain(run)])

    def ends_of_sentences(self) -> tuple[int, ...]:
        """Returns the ids of the tokens that end with one of . ! ? or a new line."""
        ids = set(range(self.vocab_size)) - set(self.special_ids)
        return tuple(i for i in sorted(ids) if self._ends_sentence(i))

    def _ends_sentence(self, index: int) -> bool:
        return self.decode_plain([index]).rstrip(" ").endswith((".", "!", "?", "\n"))

    def save(self, path: str | Path) -> Path:
        """Writes the tokenizer to `path` (a folder: to tokenizer.json in it); returns the file."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    def _id(self, role: str) -> int:
        return next((self.specials[name] for name in NAMES[role] if name in self.specials), -1)

    pad_id = property(lambda self: self._id("pad"))
    unk_id = property(lambda self: self._id("unk"))
    cls_id = property(lambda self: self._id("cls"))
    sep_id = property(lambda self: self._id("sep"))
    mask_id = property(lambda self: self._id("mask"))
    bos_id = property(lambda self: self._id("bos"))
    eos_id = property(lambda self: self._id("eos"))
    special_ids = property(lambda self: tuple(sorted(set(self.specials.values()))))

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """The ids of <extra_id_0>, <extra_id_1> …, as far as there are any."""
        found = []
        while (name := SENTINEL.format(len(found))) in self.specials:
            found.append(self.specials[name])
        return tuple(found)

    @property
    def num_rows(self) -> int:
        """Rows that an embedding needs, for all ids that a text and what stands around it become.

        A special token that nothing becomes may lie beyond: Gemma 3's for images does.
        """
        read = {*self.sentinel_ids, *(self._id(role) for role in NAMES)}
        for template in self.templates or ():
            read |= {*template.prefix, *template.middle, *template.suffix}
        unread, rows = set(self.special_ids) - read, self.vocab_size
        while rows - 1 in unread:
            rows -= 1
        return rows
