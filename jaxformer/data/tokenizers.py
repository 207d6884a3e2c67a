"""Text to ids and back: bytes, characters, and any `tokenizer.json` of the tokenizers library.

The library is imported when a text is first encoded or decoded: opening tokenised data does not
pay for it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import UserError

# The six special tokens of every tokenizer that is made here, in the order of their ids.
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<eos>")
# What published tokenizers call them; the first name that a vocabulary has is taken.
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
}
PIECE = 1 << 20  # longer texts are encoded in pieces of about this many characters


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. The subclasses say how a text without special tokens is encoded.

    Attributes:
      vocab_size: ids are 0 … vocab_size - 1.
      specials: special tokens' names → ids.
    """

    vocab_size: int
    specials: dict[str, int]

    def encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids [n] int32 of each text; a special token's name in it is mere text."""
        raise NotImplementedError

    def decode_plain(self, ids: Sequence[int]) -> str:
        """Returns the text of ids that are not special."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns what `load` reads."""
        raise NotImplementedError

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


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8, then the six specials: 262 ids, and no text is unknown."""

    def __init__(self):
        super().__init__(256 + len(SPECIALS), {n: 256 + i for i, n in enumerate(SPECIALS)})

    def encode_plain(self, texts):
        return [
            np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)
            for text in texts
        ]

    def decode_plain(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def to_json(self):
        return json.dumps({"jaxformer": "byte"})


class CharTokenizer(Tokenizer):
    """One id for each of the given characters, in their order, after the specials if any.

    Args:
      characters: the vocabulary.
      with_specials: whether ids 0 … 5 are the six specials.
    """

    characters: str

    def __init__(self, characters: str, with_specials: bool = False):
        specials = {name: i for i, name in enumerate(SPECIALS)} if with_specials else {}
        super().__init__(len(specials) + len(characters), specials)
        object.__setattr__(self, "characters", characters)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        codes = np.array([ord(c) for c in self.characters], np.int64)
        table = np.full(max(codes, default=0) + 2, -1, np.int32)  # the last entry: beyond the table
        table[codes] = np.arange(len(codes), dtype=np.int32) + len(self.specials)
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

    def decode_plain(self, ids):
        return "".join(self.characters[i - len(self.specials)] for i in ids)

    def to_json(self):
        return json.dumps(
            {
                "jaxformer": "char",
                "characters": self.characters,
                "with_specials": bool(self.specials),
            }
        )


class LibraryTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library, used without its template of special tokens.

    Args:
      text: the file's content.
      vocab_size: one more than its highest id.
      specials: its special tokens' names → ids.
    """

    text: str

    def __init__(self, text: str, vocab_size: int, specials: dict[str, int]):
        super().__init__(vocab_size, specials)
        object.__setattr__(self, "text", text)

    @functools.cached_property
    def library(self) -> Any:
        """The tokenizers.Tokenizer."""
        return _parse(self.text)

    def encode_plain(self, texts):
        pieces = [list(_pieces(text)) for text in texts]
        # The fast variant leaves out character offsets, which nobody here asks for.
        encodings = self.library.encode_batch_fast(
            [piece for parts in pieces for piece in parts], add_special_tokens=False
        )
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        joined, start = [], 0
        for parts in pieces:
            some = ids[start : start + len(parts)]
            joined.append(some[0] if len(some) == 1 else np.concatenate(some))
            start += len(parts)
        return joined

    def decode_plain(self, ids):
        return self.library.decode(list(ids), skip_special_tokens=False) if ids else ""

    def to_json(self):
        return self.text


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at ends of lines: memory stays small, and all cores share one text."""
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind("\n", start + 1, start + PIECE) + 1
        while end > start and text[end].isspace():  # blanks are often tokens of several lines
            end = text.rfind("\n", start + 1, end - 1) + 1
        if end <= start:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _parse(text: str) -> Any:
    import tokenizers

    library = tokenizers.Tokenizer.from_str(text)
    library.no_padding()
    library.no_truncation()
    library.encode_special_tokens = True  # a name such as "<eos>" in a document is mere text
    return library


def load(path: str | Path) -> Tokenizer:
    """Reads a tokenizer: ours, or any `tokenizer.json` of the tokenizers library.

    Args:
      path: the file, or a folder (a run's workdir) that holds a tokenizer.json.

    Raises:
      UserError: no such file, not a tokenizer, or ids that are doubled or leave gaps.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the tokenizer {file}: {reason}") from None


def parse(text: str, name: str) -> Tokenizer:
    """Makes a tokenizer from the content of its file; `name` is for messages."""
    try:
        content = json.loads(text)
        kind = content.get("jaxformer")
        if kind == "byte":
            return ByteTokenizer()
        if kind == "char":
            return CharTokenizer(content["characters"], content["with_specials"])
        library = _parse(text)
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is not a tokenizer.json of the tokenizers library: {reason}"
        ) from None
    vocabulary = library.get_vocab(with_added_tokens=True)
    owners: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index in owners:
            raise UserError(f"{name}: {owners[index]!r} and {token!r} both have id {index}")
        owners[index] = token
    if not owners or max(owners) >= len(owners):
        raise UserError(
            f"{name}: the highest of its {len(owners)} tokens' ids is {max(owners, default=-1)}; "
            "ids must run from 0 without gaps"
        )
    specials = {
        token.content: index
        for index, token in library.get_added_tokens_decoder().items()
        if token.special
    }
    return LibraryTokenizer(text, len(owners), specials)


def restore(text: str, vocab_size: int, specials: dict[str, int]) -> Tokenizer:
    """Makes again a tokenizer that was checked before, without importing the library."""
    if text.startswith('{"jaxformer"'):
        return parse(text, "the cached tokenizer")
    return LibraryTokenizer(text, vocab_size, specials)
