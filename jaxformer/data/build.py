"""The first start: read the documents, split them, tokenise them into an entry of the cache."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data import cache, encode, order, splits, tokenizer_training, tokenizers
from jaxformer.data.config import Config
from jaxformer.data.documents import Document
from jaxformer.data.sources import Source
from jaxformer.errors import UserError, suggest

TOGETHER = 1 << 22  # characters that are tokenised in one call
SAMPLE = 1024  # characters for each token of the vocabulary that a tokenizer is trained on


def tokenizer_files(config: Config) -> tuple[Path, ...]:
    """Returns the files of the tokenizer, none for one that is made here.

    Raises:
      UserError: no such file.
    """
    if config.tokenizer in ("byte", "char") or config.trained_tokenizer():
        return ()
    files = tokenizers.locate(Path(config.tokenizer).expanduser())
    if not files[0].is_file():
        made = ("byte", "char", "bpe:4096", "wordpiece:8000")
        raise UserError(
            f"data.tokenizer={config.tokenizer!r}: no file {files[0]}; give one, a run's workdir, "
            f"or one of {', '.join(made)}{suggest(config.tokenizer, made)}"
        )
    return files


def choices(config: Config) -> list[Any]:
    """Returns the part of a config that decides what an entry of the cache holds."""
    rows = [config.text_field, config.text_pair_field, config.label_field, config.fields]
    rows += [config.target_field, config.source_prefix]
    limits = [config.snippet_lines, config.max_documents, config.max_bytes]
    split = [config.split, config.validation_fraction]
    tokens: list[Any] = ["file" if tokenizer_files(config) else config.tokenizer, config.extra_ids]
    tokens += [encode.form(config), config.tokenizer == "char" and config.layout == "windows"]
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

    tokenizer = _make_tokenizer(config, found, divided, say).with_sentinels(config.extra_ids)
    say(f"tokenising {', '.join(s.name for s in found)} ({config.tokenizer}) …")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    writers: dict[str, cache.Writer] = {
        split: cache.Writer(folder, split, tokenizer.vocab_size) for split in splits.SPLITS
    }
    names = encode.Names()
    encoders = {split: encode.encoder(config, tokenizer, names) for split in splits.SPLITS}
    for split, batch in grouped(divided(*splits.SPLITS)):
        encoded = encoders[split](batch)
        writers[split].add(*encoded)
    _check(config, found, writers, names.sorted())
    for writer in writers.values():
        if config.labels in ("field", "package"):
            writer.labels = names.renumber(np.array(writer.labels)).tolist()
        if "tags_N" in writer.more:
            writer.more["tags_N"] = [names.renumber(tags) for tags in writer.more["tags_N"]]
    finished = {split: writer.finish() for split, writer in writers.items()}
    tokens = sum(about["tokens"] for about in finished.values())
    say(f"tokenised {tokens:,} tokens in {time.monotonic() - began:.1f} s; kept in the cache")
    return {
        "splits": finished,
        "class_names": names.sorted(),
        "vocab_size": tokenizer.vocab_size,
        "specials": tokenizer.specials,
        "templates": tokenizer.templates,
        "tokenizer": zlib.crc32((folder / "tokenizer.json").read_bytes()),
    }


def _check(config: Config, found: list[Source], writers: dict, names: list[str]) -> None:
    train, validation = (
        len(writers[split].lengths) * any(writers[split].lengths) for split in splits.SPLITS
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
    if config.labels not in ("", "value") and len(names) < 2:
        raise UserError(f"data.labels={config.labels!r}: all documents have the label {names[0]!r}")


def _make_tokenizer(
    config: Config, found: list[Source], divided: Callable, say: Callable
) -> tokenizers.Tokenizer:
    files = tokenizer_files(config)
    if files:
        return tokenizers.load(files[0])
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
