"""Trains a vocabulary on a corpus: byte-level BPE and WordPiece."""

from __future__ import annotations

import collections
import unicodedata
from collections.abc import Sequence
from typing import Any

from jaxformer.data import tokenizers


def train(kind: str, vocab_size: int, texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Trains a tokenizer; the same texts give the same one.

    Args:
      kind: "bpe" (byte-level; Radford et al. 2019) or "wordpiece" (Devlin et al. 2018, cased).
      vocab_size: most tokens, the six specials included; a small corpus gives fewer.
      texts: the training texts.
    """
    import tokenizers as library

    if kind == "bpe":
        model = library.Tokenizer(library.models.BPE())
        model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = library.decoders.ByteLevel()
        model.train_from_iterator(
            texts,
            library.trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=list(tokenizers.SPECIALS),
                initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
                show_progress=False,
            ),
        )
    else:
        model = library.Tokenizer(_wordpiece(vocab_size, texts))
        model.normalizer = _cased()
        model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        model.decoder = library.decoders.WordPiece()
        model.add_special_tokens(list(tokenizers.SPECIALS))
    return tokenizers.parse(model.to_str(), f"the trained {kind} tokenizer")


def _cased() -> Any:
    import tokenizers as library

    return library.normalizers.BertNormalizer(lowercase=False, strip_accents=False)


def _wordpiece(vocab_size: int, texts: Sequence[str]) -> Any:
    """Trains the model. The library's trainer numbers the continuing characters ("##a") in the
    order of a randomly seeded hash map, and breaks ties by those numbers: two runs differ. So we
    number them first, as if they were special."""
    import tokenizers as library

    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    seen = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(seen[: min(1000, vocab_size // 4)])  # rarer characters become [UNK]
    continuing = [f"##{c}" for c in alphabet if c.isalnum() or not (c.isascii() or _mark(c))]
    model = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = _cased()
    model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    model.train_from_iterator(
        texts,
        library.trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*tokenizers.SPECIALS, *continuing],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    vocabulary = model.get_vocab(with_added_tokens=True)
    return library.models.WordPiece(vocabulary, unk_token="[UNK]")


def _mark(character: str) -> bool:
    """Whether BERT's pre-tokenizer makes the character a word of its own."""
    return unicodedata.category(character).startswith("P")
