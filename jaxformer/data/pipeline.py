"""From a config to batches: find the text, tokenise it once, hand out rows by (seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxformer.data import build, cache, order, sources, tokenizers
from jaxformer.data.config import Config
from jaxformer.data.layouts import Batch, Packed, Padded, Special, Windows
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of the data once it is loaded. Ids are -1 where the tokenizer has none."""

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    bos_id: int
    eos_id: int
    special_ids: tuple[int, ...]
    num_classes: int  # 0 without labels
    class_names: tuple[str, ...]
    majority: float  # the share of the largest class in the validation split: what guessing gets
    unigram_entropy: float  # nats per token of the training split
    bytes_per_token: float  # of the validation split, for bits per byte
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    fingerprint: str  # of all tokens and the tokenizer: equal data give equal fingerprints


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, as batches.

    Attributes:
      layout: gathers rows.
      batch_size: B, rows in a global batch.
      training: whether rows are shuffled for ever; if not, they come once, in order.
    """

    layout: Windows | Packed | Padded
    batch_size: int
    training: bool
    labelled: bool

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self.layout.num_rows

    @property
    def num_batches(self) -> int:
        """Batches that show every row once (training: at least once)."""
        return -(-self.num_rows // self.batch_size)

    def batch(self, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns a batch, a pure function of (seed, step).

        Args:
          step: from 0; for validation less than `num_batches`, and the seed does not matter.
          seed: of the run.
          rows: which rows of the global batch to make, for this process.

        Returns:
          tokens, targets, segment_ids, positions [B, T] int32, weights [B, T] float32, rows [B]
          int32; labels [B] int32 if there are classes; token_types [B, T] int32 for pairs.
          Training windows are full and alike: they have no segment_ids and no positions.
          In rows that fill up the last validation batch segment_ids and weights are 0, labels -1.
        """
        if step < 0 or not (self.training or step < self.num_batches):
            raise IndexError(f"step {step} of a split of {self.num_batches} batches")
        places_R = np.arange(self.batch_size)[rows]
        if self.training:
            layout = self.layout
            row_R, shift_R = order.draw(
                step, self.batch_size, layout.num_rows, layout.max_shift, seed, places_R
            )
            batch = layout.gather(row_R, shift_R)
        else:
            row_R = step * self.batch_size + places_R
            missing_R = row_R >= self.num_rows
            batch = self.layout.gather(np.where(missing_R, 0, row_R), np.zeros_like(row_R))
            if missing_R.any():
                batch = {name: np.array(array) for name, array in batch.items()}
                for name in ("weights", "segment_ids"):
                    batch[name][missing_R] = 0
                if "labels" in batch:
                    batch["labels"][missing_R] = -1
        if not self.labelled:
            batch.pop("labels", None)
        return {**batch, "rows": places_R.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Tokenised data, ready to be read."""

    info: Info
    tokenizer: tokenizers.Tokenizer
    train: Split
    validation: Split


def load(config: Config, *, say: Callable[[str], None] = print) -> Dataset:
    """Opens the data of a config; tokenises it first if the cache does not have it.

    Args:
      config: what to read.
      say: told what takes time.

    Raises:
      UserError: no such file or field, no text, fewer rows than a batch.
    """
    folder = config.cache_folder()
    found = [sources.find(config.source, config)]
    if config.validation_source:
        found.append(sources.find(config.validation_source, config, "data.validation_source"))
    stat_key = _key(config, found, sources.Source.stat_key)
    entry = cache.lookup(folder, stat_key)
    opened = cache.open_entry(folder, entry) if entry else None
    if opened is None:
        key = _key(config, found, sources.Source.content_key)
        entry = cache.lookup(folder, key) or key
        opened = cache.open_entry(folder, entry)
        if opened is None:
            entry = key
            opened = cache.create(folder, entry, lambda at: build.fill(at, config, found, say))
            # Whoever names the tokenizer that was made here (a run's folder) finds the same tokens.
            named = dataclasses.replace(config, tokenizer=str(folder / entry))
            cache.remember(folder, _key(named, found, sources.Source.content_key), entry)
        cache.remember(folder, stat_key, entry)
    return _dataset(config, *opened)


def _key(config: Config, found: list[sources.Source], of: Callable[[sources.Source], list]) -> str:
    """Returns a fingerprint of all that an entry of the cache is made of."""
    file = build.tokenizer_file(config)
    tokenizer = [sources.Source("", "tokenizer", (file,), ("",))] if file else []
    return cache.digest([build.choices(config), [of(source) for source in (*found, *tokenizer)]])


def _dataset(config: Config, meta: dict[str, Any], corpora: dict[str, cache.Corpus]) -> Dataset:
    tokenizer = tokenizers.restore(meta["tokenizer_json"], meta["vocab_size"], meta["specials"])
    about, names = meta["splits"], tuple(meta["class_names"])
    special = Special(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    splits = {}
    for name, corpus in corpora.items():
        training = name == "train"
        layout: Windows | Packed | Padded
        if config.layout == "windows":
            stride = 0 if training else config.eval_stride or config.seq_len
            layout = Windows(corpus, config.seq_len, stride, special)
        elif config.layout == "packed":
            layout = Packed(corpus, config.seq_len, special)
        else:
            cut = config.labels != "field"
            layout = Padded(corpus, config.seq_len, special, bool(config.text_pair_field), cut)
        splits[name] = Split(layout, config.batch_size, training, bool(names))
    rows = splits["train"].num_rows
    if rows < config.batch_size:
        raise UserError(
            f"data.source={config.source!r} has {rows} training rows of data.seq_len="
            f"{config.seq_len} tokens, fewer than data.batch_size={config.batch_size}; "
            "make one of the two smaller, or give more text"
        )
    counts_C = np.bincount(corpora["validation"].labels_J.clip(0))
    info = Info(
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        mask_id=tokenizer.mask_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        special_ids=tokenizer.special_ids,
        num_classes=len(names),
        class_names=names,
        majority=float(counts_C.max() / counts_C.sum()) if names else 0.0,
        unigram_entropy=about["train"]["entropy"],
        bytes_per_token=about["validation"]["bytes"] / about["validation"]["tokens"],
        train_tokens=about["train"]["tokens"],
        validation_tokens=about["validation"]["tokens"],
        train_documents=about["train"]["documents"],
        validation_documents=about["validation"]["documents"],
        fingerprint=meta["fingerprint"],
    )
    return Dataset(info, tokenizer, splits["train"], splits["validation"])
