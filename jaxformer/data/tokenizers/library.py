"""Any `tokenizer.json` of the tokenizers library.

The library is imported when a text is first encoded or decoded: opening tokenised data does not
pay for it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxformer.data.tokenizers.base import Template, Tokenizer
from jaxformer.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from jaxformer.errors import UserError

PIECE = 1 << 20  # longer texts are encoded in pieces of about this many characters
PLACEHOLDERS = ("a", "the", "1", ".", "A")  # texts whose surroundings a template shows


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
        return read(self.text)

    @functools.cached_property
    def templates(self):
        single, double = (_template(self.library, pair) for pair in (False, True))
        return (single, double) if single and double and single.length else None

    def encode_plain(self, texts):
        pieces = [list(_pieces(text)) for text in texts]
        # The fast variant leaves out character offsets, which nobody here asks for.
        encodings = self.library.encode_batch_fast(
            [piece for parts in pieces for piece in parts], add_special_tokens=False
        )
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        if ids and self._forbidden_V[np.concatenate(ids)].any():
            ids = [self._without_names(one)[0] for one in ids]
        joined, start = [], 0
        for parts in pieces:
            some = ids[start : start + len(parts)]
            joined.append(some[0] if len(some) == 1 else np.concatenate(some))
            start += len(parts)
        return joined

    def encode_spans(self, texts):
        encodings = self.library.encode_batch(list(texts), add_special_tokens=False)
        encoded = []
        for text, encoding in zip(texts, encodings):
            ids, places = self._without_names(np.array(encoding.ids, np.int32))
            spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            encoded.append((ids, _without_blanks(text, spans)[places]))
        return encoded

    def _without_names(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spells out special tokens, and returns the place that each id had. In unigram and word
        vocabularies a name such as "</s>" is a piece like others, and a text may hold it."""
        places = np.arange(len(ids))
        found = self._forbidden_V[ids]
        if not found.any():
            return ids, places
        parts = []
        for index, special in zip(ids.tolist(), found):
            if special:
                name = self.library.id_to_token(index)
                letters = [self.library.token_to_id(letter) for letter in name]
                letters = [self.unk_id if i is None else i for i in letters]
                parts.append([i for i in letters if i >= 0])
            else:
                parts.append([index])
        joined = np.array([*itertools.chain.from_iterable(parts)], np.int32)
        return joined, np.repeat(places, [len(part) for part in parts])

    @functools.cached_property
    def _forbidden_V(self) -> np.ndarray:
        """The special tokens, but for the unknown one: no harm is in it."""
        forbidden = np.zeros(self.vocab_size, bool)
        forbidden[[index for index in self.special_ids if index != self.unk_id]] = True
        return forbidden

    def encode_words(self, rows):
        # A blank before each word: "Ġword" in a byte-level vocabulary (as the library does with
        # `add_prefix_space`), and the "▁word" or "word" of others.
        parts = iter(self.encode_plain([" " + word for words in rows for word in words]))
        encoded = []
        for words in rows:
            some = list(itertools.islice(parts, len(words)))
            counts = [len(part) for part in some]
            ids = np.concatenate([*some, np.zeros(0, np.int32)])
            encoded.append((ids, [0, *itertools.accumulate(counts)][: len(words)], counts))
        return encoded

    def decode_plain(self, ids):
        return self.library.decode(list(ids), skip_special_tokens=False) if ids else ""

    def _ends_sentence(self, index):
        token = self.library.id_to_token(index) or ""
        return token.removesuffix("</w>").endswith((".", "!", "?", "\n", "Ċ"))

    def _add_sentinels(self, names):
        library = read(self.text)
        library.add_special_tokens(names)
        return parse(library.to_str(), "the tokenizer with sentinels")

    def to_json(self):
        return self.text


def _without_blanks(text: str, spans: np.ndarray) -> np.ndarray:
    """Moves the ends of spans inwards, over blanks."""
    blank = np.array([*(character.isspace() for character in text), False])
    for _ in range(len(text)):
        begins, ends = spans[:, 0], spans[:, 1]
        left = (begins < ends) & blank[begins]
        right = (begins < ends) & ~left & blank[np.maximum(ends - 1, 0)]
        if not (left | right).any():
            break
        spans = np.stack([begins + left, ends - right], axis=1)
    return spans.astype(np.int32)


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


def _template(library: Any, pair: bool) -> Template | None:
    """Returns what the tokenizer's post-processor puts around texts, seen on an example."""
    for text in PLACEHOLDERS:
        encoding = library.encode(text, text if pair else None)
        groups = [
            (key, [index for index, _ in group])
            for key, group in itertools.groupby(
                enumerate(encoding.sequence_ids), lambda item: item[1]
            )
        ]
        if [key for key, _ in groups if key is not None] == [0, 1][: 1 + pair]:
            break
    else:
        return None
    around: list[list[int]] = [[], [], []]
    types = [0, 0]
    passed = 0
    for key, places in groups:
        if key is None:
            around[passed] = places
        else:
            types[key], passed = encoding.type_ids[places[0]], passed + 1
    if not pair:
        around = [around[0], [], around[1]]
    ids = [tuple(encoding.ids[i] for i in places) for places in around]
    kinds = [tuple(encoding.type_ids[i] for i in places) for places in around]
    return Template(ids[0], ids[1], ids[2], kinds[0], types[0], kinds[1], types[1], kinds[2])


def read(text: str) -> Any:
    """Returns the tokenizers.Tokenizer of a file's content."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(text)
    library.no_padding()
    library.no_truncation()
    library.encode_special_tokens = True  # a name such as "<eos>" in a document is mere text
    return library


def parse(text: str, name: str) -> Tokenizer:
    """Makes a tokenizer from the content of its file; `name` is for messages."""
    try:
        content = json.loads(text)
        kind = content.get("jaxformer")
        sentinels = tuple(content.get("sentinels", ()))
        if kind == "byte":
            return ByteTokenizer(sentinels)
        if kind == "char":
            return CharTokenizer(content["characters"], content["with_specials"], sentinels)
        library = read(text)
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
    highest = max(owners, default=-1)
    # Published files leave some ids out, but an embedding of mostly nothing is a mistake.
    if highest < 0 or highest > 2 * len(owners) + 1024:
        raise UserError(
            f"{name}: the highest of its {len(owners)} tokens' ids is {highest}; "
            "ids must begin at 0, and most of them must be there"
        )
    specials = {
        token.content: index
        for index, token in library.get_added_tokens_decoder().items()
        if token.special
    }
    return LibraryTokenizer(text, highest + 1, specials)


def restore(
    text: str,
    vocab_size: int,
    specials: dict[str, int],
    templates: Sequence[Sequence[Any]] | None = None,
) -> Tokenizer:
    """Makes again a tokenizer that was checked before, without importing the library.

    Args:
      text: the file's content.
      vocab_size: one more than the highest id.
      specials: special tokens' names → ids.
      templates: Tokenizer.templates, as JSON has it.
    """
    if text.startswith('{"jaxformer"'):
        return parse(text, "the cached tokenizer")
    tokenizer = LibraryTokenizer(text, vocab_size, specials)
    tokenizer.__dict__["templates"] = templates and tuple(map(_template_of, templates))
    return tokenizer


def _template_of(saved: Sequence[Any]) -> Template:
    """Reads a template that was a list of JSON."""
    values: list[Any] = [tuple(x) if isinstance(x, list) else x for x in saved]
    return Template(*values)
