"""From a config to batches: find the text, tokenise it once, hand out rows by (seed, step)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxformer.data import (
    build,
    cache,
    classes,
    layouts,
    neighbours,
    order,
    sources,
    splits,
    tokenizers,
)
from jaxformer.data.config import Config
from jaxformer.data.layouts import Batch, Layout
from jaxformer.data.reading import Document
from jaxformer.errors import UserError

# Changes a batch on the host: (batch, keys) → batch, with 64 random bits (uint64 [B]) for each row,
# on which, and on the row, its result for a row depends alone. See corruption.py.
Transform = Callable[[Batch, np.ndarray], Batch]
EMPTY = {"labels": -1, "tags": -1, "next_sentence": -1, "order": -1, "start": 0, "end": 0}


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
    num_rows: int  # that an embedding needs; a special token that nothing becomes may lie beyond
    num_classes: int  # of labels or of tags; 0 without
    class_names: tuple[str, ...]
    majority: float  # the share of the largest class in the validation split: what guessing gets
    unigram_entropy: float  # nats per token of the training split (of its targets)
    bytes_per_token: float  # of the validation split (of its targets), for bits per byte
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    fingerprint: str  # of all tokens and the tokenizer: equal data give equal fingerprints
    start_id: int = -1  # the token that targets begin with, for sequence to sequence
    end_id: int = -1  # and the one that ends them


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, as batches.

    Attributes:
      layout: gathers rows.
      batch_size: B, rows in a global batch.
      training: whether rows are shuffled for ever; if not, they come once, in order.
      labelled: whether batches have labels.
      transform: what is done to every batch, if anything.
    """

    layout: Layout
    batch_size: int
    training: bool
    labelled: bool
    transform: Transform | None = None

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
          int32; labels [B] int32 (float32 if they are numbers) or tags [B, T] int32 if there are
          any; token_types [B, T] int32 if they tell anything; neighbours [B, L, K, r] int32 with
          data.retrieval; what else a layout has, see there.
          Training windows are full and alike: they have no segment_ids and no positions.
          In rows that fill up the last validation batch segment_ids and weights are 0, labels and
          tags -1 (numbers 0). A transform makes of this what it says.
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
            key_R = order.keys(step, self.batch_size, seed, places_R)
        else:
            row_R = step * self.batch_size + places_R
            missing_R = row_R >= self.num_rows
            batch = self.layout.gather(np.where(missing_R, 0, row_R), np.zeros_like(row_R))
            if missing_R.any():
                batch = {name: np.array(array) for name, array in batch.items()}
                for name in {"weights", "segment_ids", "source_segment_ids", *EMPTY} & set(batch):
                    whole = batch[name].dtype.kind == "i"
                    batch[name][missing_R] = EMPTY.get(name, 0) if whole else 0
            key_R = order.keys(0, 0, -1, row_R)
        if not self.labelled:
            batch.pop("labels", None)
        if self.transform is not None:
            batch = self.transform(batch, key_R)
        return {**batch, "rows": places_R.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Tokenised data, ready to be read."""

    info: Info
    tokenizer: tokenizers.Tokenizer
    train: Split
    validation: Split
    config: Config

    def documents(self, split: str) -> list[Document]:
        """Returns the texts of a split, read from its source again, in the order of their tokens.

        Row r of a validation split of pairs, of layout "seq2seq" or "seq2seq_packed", is document
        r; of layouts "padded" and "qa" it is document `layout.document_R[r]`.

        Args:
          split: "train" or "validation".
        """
        divide = splits.divider(self.config, sources.find_all(self.config))
        return [document for name, document in divide() if name == split]

    def transformed(self, transform: Transform) -> Dataset:
        """Returns the same data with a transform of both splits' batches."""
        parts = {
            name: dataclasses.replace(getattr(self, name), transform=transform)
            for name in splits.SPLITS
        }
        return dataclasses.replace(self, **parts)


def load(
    config: Config,
    *,
    say: Callable[[str], None] = print,
    embed: neighbours.Embed | None = None,
) -> Dataset:
    """Opens the data of a config; tokenises it first if the cache does not have it.

    Args:
      config: what to read.
      say: told what takes time.
      embed: texts to vectors, by the encoder that data.retrieval names, if it does.

    Raises:
      UserError: no such file or field, no text, fewer rows than a batch.
    """
    folder = config.cache_folder()
    found = sources.find_all(config)
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
    return _dataset(config, *opened, say, embed)


def _key(config: Config, found: list[sources.Source], of: Callable[[sources.Source], list]) -> str:
    """Returns a fingerprint of all that an entry of the cache is made of."""
    files = build.tokenizer_files(config)
    # The name of the file that decides the kind does not matter: it is the same in another folder.
    names = ("", *(file.name for file in files[1:]))
    tokenizer = [sources.Source("", "tokenizer", files, names)] if files else []
    return cache.digest([build.choices(config), [of(source) for source in (*found, *tokenizer)]])


def _dataset(
    config: Config,
    meta: dict[str, Any],
    corpora: dict[str, cache.Corpus],
    say: Callable[[str], None],
    embed: neighbours.Embed | None,
) -> Dataset:
    tokenizer = tokenizers.restore(
        meta["tokenizer_json"], meta["vocab_size"], meta["specials"], meta["templates"]
    )
    about, made = meta["splits"], {}
    names, corpora = classes.arrange(config.class_names, meta["class_names"], corpora)
    found, fingerprint = {}, meta["fingerprint"]
    if config.retrieval:
        key, found = neighbours.find(config, fingerprint, corpora, tokenizer, embed, say)
        fingerprint = cache.digest([fingerprint, key])
    for name, corpus in corpora.items():
        training = name == "train"
        layout = layouts.make(config, corpus, tokenizer, training, found.get(name))
        labelled = config.labels not in ("", "tags")
        made[name] = Split(layout, config.batch_size, training, labelled)
        cut = getattr(layout, "truncated", 0)
        if cut:
            say(
                f"{cut:,} of {len(corpus.first_J):,} {name} pairs lose their ends: they are longer "
                f"than data.source_len={config.source_length} or data.seq_len={config.seq_len}"
            )
    rows = made["train"].num_rows
    if rows < config.batch_size:
        raise UserError(
            f"data.source={config.source!r} has {rows} training rows of data.seq_len="
            f"{config.seq_len} tokens, fewer than data.batch_size={config.batch_size}; "
            "make one of the two smaller, or give more text"
        )
    ends = None
    with contextlib.suppress(UserError):  # "seq2seq" has raised it above, others may do without
        ends = layouts.ends_of(tokenizer, config.start_id)
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
        num_rows=tokenizer.num_rows,
        num_classes=len(names),
        class_names=names,
        majority=_majority(corpora["validation"]) if names else 0.0,
        unigram_entropy=about["train"]["entropy"],
        bytes_per_token=about["validation"]["bytes"] / about["validation"]["counted"],
        train_tokens=about["train"]["tokens"],
        validation_tokens=about["validation"]["tokens"],
        train_documents=about["train"]["documents"],
        validation_documents=about["validation"]["documents"],
        fingerprint=fingerprint,
        start_id=ends.start if ends else -1,
        end_id=ends.target_suffix[-1] if ends else -1,
    )
    return Dataset(info, tokenizer, made["train"], made["validation"], config)


def _majority(corpus: cache.Corpus) -> float:
    found = corpus.more.get("tags_N", corpus.labels_J)
    counts_C = np.bincount(found[found >= 0], minlength=1)
    return float(counts_C.max() / max(1, counts_C.sum()))
