"""Random numbers of rows, rows without their special tokens, and rows of a source and a target.

Shapes: R rows, N tokens in a row, S in a source, T in a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxformer.data import order
from jaxformer.data.layouts.base import Batch, Stretch, write_ids
from jaxformer.data.layouts.seq2seq import Ends
from jaxformer.data.tokenizers import Template


def draws(key_R: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Returns `count` random numbers for each row: uint64 [R, count].

    Args:
      key_R: uint64, the rows' keys.
      stream: which of their sequences of random numbers.
      count: how many.
    """
    begin_R = order.mix(np.asarray(key_R, np.uint64) ^ order.mix(np.uint64(stream)))
    return order.mix(begin_R[:, None] + np.arange(count, dtype=np.uint64))


def fraction(drawn: np.ndarray) -> np.ndarray:
    """Returns random numbers as float64 in [0, 1)."""
    return (drawn >> np.uint64(11)) * 2.0**-53


def bodies(batch: Batch, frame: Template) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows' tokens without padding and special tokens.

    Args:
      batch: tokens [R, N]; segment_ids [R, N], 0 at the rows' ends; without them rows are full.
      frame: what stands around a row's text.

    Returns:
      tokens [R, N], moved to the left, and how many of each row are text.
    """
    tokens_RN = batch["tokens"]
    real_RN = batch.get("segment_ids", np.ones_like(tokens_RN)) > 0
    length_R = np.maximum(0, real_RN.sum(axis=1) - len(frame.prefix) - len(frame.suffix))
    return np.roll(tokens_RN, -len(frame.prefix), axis=1), length_R


def joined(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ragged rows as one array, and their lengths."""
    return np.concatenate([*rows, np.zeros(0, np.int32)]), np.array([len(row) for row in rows])


def teach(
    source: tuple[np.ndarray, np.ndarray],
    target: tuple[np.ndarray, np.ndarray],
    sizes: tuple[int, int],
    ends: Ends,
    pad: int,
    real_R: np.ndarray,
) -> Batch:
    """Returns a batch of sources and targets, with the special tokens at their ends.

    Args:
      source: all rows' tokens in one array, and how many each row has.
      target: the same.
      sizes: S and T.
      ends: special tokens.
      pad: fills rows.
      real_R: which rows there are; the others become padding.
    """
    source_RS, seen_RS = _fill(*source, sizes[0], ends.source_prefix, ends.source_suffix, pad)
    targets_RT, real_RT = _fill(*target, sizes[1], ends.target_prefix, ends.target_suffix, pad)
    seen_RS &= real_R[:, None]
    real_RT &= real_R[:, None]
    tokens_RT = np.full_like(targets_RT, ends.start)
    tokens_RT[:, 1:] = targets_RT[:, :-1]
    return {
        "source": np.where(seen_RS, source_RS, pad).astype(np.int32),
        "source_segment_ids": seen_RS.astype(np.int32),
        "tokens": np.where(real_RT, tokens_RT, pad).astype(np.int32),
        "targets": np.where(real_RT, targets_RT, pad).astype(np.int32),
        "weights": real_RT.astype(np.float32),
        "segment_ids": real_RT.astype(np.int32),
        "positions": np.where(real_RT, np.arange(sizes[1]), 0).astype(np.int32),
    }


def _fill(
    flat: np.ndarray,
    length_R: np.ndarray,
    width: int,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    pad: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ragged rows between special tokens, padded, and where they are real."""
    R = len(length_R)
    filled = np.full(R * width, pad, np.int32)
    text = Stretch(np.cumsum(length_R) - length_R, length_R)
    begin_R = write_ids(filled, np.arange(R) * width, prefix)
    write_ids(filled, text.write(filled, begin_R, flat), suffix)
    whole_R = length_R + len(prefix) + len(suffix)
    return filled.reshape(R, width), np.arange(width) < whole_R[:, None]
