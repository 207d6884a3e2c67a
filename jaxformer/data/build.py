"""The first start: read the documents, split them, tokenise them into an entry of the cache."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data import cache, order, splits, tokenizer_training, tokenizers
from jaxformer.data.config import Config
from jaxformer.data.documents import Document
from jaxformer.data.sources import Source
from jaxformer.errors import UserError, suggest

TOGETHER = 1 << 22  # characters that are tokenised in one call
SAMPLE = 1024  # characters for each token of the vocabulary that a tokenizer is trained on


def tokenizer_file(config: Config) -> Path | None:
    """Returns the tokenizer's file, None for one that is made here.

    Raises:
      UserError: no such file.
    """
    if config.tokenizer in ("byte", "char") or config.trained_tokenizer():
        return None
    path = Path(config.tokenizer).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        made = ("byte", "char", "bpe:4096", "wordpiece:8000")
        raise UserError(
            f"data.tokenizer={config.tokenizer!r}: no file {file}; give one, a run's workdir, or "
            f"one of {', '.join(made)}{suggest(config.tokenizer, made)}"
        )
    return file


def choices(config: Config) -> list[Any]:
    """Returns the part of a config that decides what an entry of the cache holds."""
    rows = [config.text_field, config.text_pair_field, config.label_field, config.fields]
    limits = [config.snippet_lines, config.max_documents, config.max_bytes]
    split = [config.split, config.validation_fraction]
    tokens: list[Any] = [config.tokenizer if tokenizer_file(config) is None else "file"]
    tokens += [config.layout == "padded", config.tokenizer == "char" and config.layout == "windows"]
    return [rows, config.delimiter, config.labels, limits, split, tokens]


def fill(folder: Path, config: Config, found: list[Source], say: Callable) -> dict[str, Any]:
    """Writes both splits and the tokenizer into `folder`; returns the entry's meta.

    Args:
      folder: empty.
      config: what to read.
      found: its source, and the validation source if it has one.
      say: told what happens.

    Raises:
      UserError: an empty split, and whatever is wrong with a file.
    """
    began = time.monotonic()
    divide = splits.divider(config, found)

    def divided(*splits: str) -> Iterator[tuple[str, Document]]:
        return ((s, d) for s, d in divide() if s in splits)

    tokenizer = _make_tokenizer(config, found, divided, say)
    say(f"tokenising {', '.join(s.name for s in found)} ({config.tokenizer}) …")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    writers: dict[str, cache.Writer] = {
        split: cache.Writer(folder, split, tokenizer.vocab_size) for split in splits.SPLITS
    }
    classes: dict[str, int] = {}  # numbered as they come, renumbered by name below
    end = [] if config.layout == "padded" or tokenizer.eos_id < 0 else [tokenizer.eos_id]
    for split, batch in grouped(divided(*splits.SPLITS)):
        firsts = tokenizer.encode_batch([document.text for document in batch])
        parts = firsts
        if config.text_pair_field:
            seconds = tokenizer.encode_batch([document.pair for document in batch])
            parts = [np.concatenate(both) for both in zip(firsts, seconds)]
        if end:
            parts = [np.append(part, np.int32(end[0])) for part in parts]
        labels = [-1] * len(batch)
        if config.labels:
            labels = [classes.setdefault(document.label, len(classes)) for document in batch]
        size = sum(len((d.text + d.pair).encode("utf-8", "replace")) for d in batch)
        writers[split].add(parts, [len(first) for first in firsts], labels, size)
    names = sorted(classes, key=_natural)
    _check(config, found, writers, names)
    renumber = np.array([names.index(name) for name in classes] + [-1], np.int32)
    for writer in writers.values():
        writer.labels = renumber[writer.labels].tolist()
    finished = {split: writer.finish() for split, writer in writers.items()}
    tokens = sum(about["tokens"] for about in finished.values())
    say(f"tokenised {tokens:,} tokens in {time.monotonic() - began:.1f} s; kept in the cache")
    return {
        "splits": finished,
        "class_names": names,
        "vocab_size": tokenizer.vocab_size,
        "specials": tokenizer.specials,
        "tokenizer": zlib.crc32((folder / "tokenizer.json").read_bytes()),
    }


def _natural(name: str) -> tuple[float, str]:
    """Sorts "2" before "10", and names as they are."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _check(config: Config, found: list[Source], writers: dict, names: list[str]) -> None:
    train, validation = (
        len(writers[split].lengths) * bool(writers[split].counts_V.any()) for split in splits.SPLITS
    )
    if not train + validation:
        raise UserError(f"data.source={found[0].name!r} holds no text")
    if not train or not validation:
        empty = "training" if not train else "validation"
        name = found[-1 if config.validation_source and not validation else 0].name
        raise UserError(
            f"the {empty} split of {name!r} is empty ({train + validation} documents, "
            f"data.split={config.split!r}, data.validation_fraction={config.validation_fraction}); "
            "set data.split='tail', another fraction, or a data.validation_source"
        )
    if config.labels and len(names) < 2:
        raise UserError(f"data.labels={config.labels!r}: all documents have the label {names[0]!r}")


def _make_tokenizer(
    config: Config, found: list[Source], divided: Callable, say: Callable
) -> tokenizers.Tokenizer:
    file = tokenizer_file(config)
    if file is not None:
        return tokenizers.load(file)
    if config.tokenizer == "byte":
        return tokenizers.ByteTokenizer()
    if config.tokenizer == "char":
        characters: set[str] = set()
        for _, document in divided(*splits.SPLITS):
            characters.update(document.text, document.pair)
        return tokenizers.CharTokenizer("".join(sorted(characters)), config.layout != "windows")
    kind, size = config.trained_tokenizer()  # type: ignore[misc]
    sample = _sample(divided("train"), size * SAMPLE, found[0].size())
    say(f"training a {kind} tokenizer of {size:,} tokens on {sum(map(len, sample)):,} characters …")
    return tokenizer_training.train(kind, size, sample)


def _sample(divided: Iterator[tuple[str, Document]], wanted: int, size: int) -> list[str]:
    """Returns training texts of about `wanted` characters, from everywhere in `size` bytes (from
    the beginning, where the size is not known)."""
    share = wanted / max(size, wanted) * 2.0**64
    texts: list[str] = []
    for _, document in divided:
        if wanted > 0 and (not texts or int(order.mix(document.key)) <= share):
            texts += [text[:wanted] for text in (document.text, document.pair) if text]
            wanted -= len(document.text) + len(document.pair)
    return texts


def grouped(divided: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, list[Document]]]:
    """Groups documents of one split until they have enough text for one call."""
    waiting: dict[str, list[Document]] = {split: [] for split in splits.SPLITS}
    sizes = dict.fromkeys(splits.SPLITS, 0)
    for split, document in divided:
        waiting[split].append(document)
        sizes[split] += len(document.text) + len(document.pair) + 64
        if sizes[split] > TOGETHER:
            yield split, waiting[split]
            waiting[split], sizes[split] = [], 0
    yield from ((split, batch) for split, batch in waiting.items() if batch)
