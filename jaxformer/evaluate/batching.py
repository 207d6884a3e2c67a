"""Rows of different lengths in few shapes: each shape is a program that XLA compiles.

B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def padded_length(length: int, most: int) -> int:
    """Returns the next power of 2 from 16 to 128, or multiple of 128 above; never over `most`."""
    if length <= 128:
        rounded = max(16, 1 << max(length - 1, 0).bit_length())
    else:
        rounded = -(-length // 128) * 128
    return max(length, min(rounded, most))


def batches_by_length(
    lengths: Sequence[int], batch_size: int, most: int
) -> Iterator[tuple[int, list[int]]]:
    """Yields (T, indices of at most `batch_size` rows that fit into T), the longest first.

    The longest come first, so that too large a batch runs out of memory at once and not at the end.

    Args:
      lengths: of the rows, in tokens.
      batch_size: most rows of a batch.
      most: the longest row that the model reads.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(padded_length(length, most), []).append(index)
    for length in sorted(groups, reverse=True):
        group = groups[length]
        for start in range(0, len(group), batch_size):
            yield length, group[start : start + batch_size]


def pad_rows(
    rows: Sequence[Sequence[int] | np.ndarray], length: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_BT and segment_ids_BT (1 token, 0 padding) int32, padded on the right.

    B is the next power of 2, at most `batch_size`: a last batch that is not full brings few new
    shapes and little idle work. Rows beyond the given ones are padding only.
    """
    B = min(1 << max(len(rows) - 1, 0).bit_length(), max(batch_size, len(rows)))
    tokens_BT = np.zeros((B, length), np.int32)
    segment_ids_BT = np.zeros((B, length), np.int32)
    for row, ids in enumerate(rows):
        tokens_BT[row, : len(ids)] = ids
        segment_ids_BT[row, : len(ids)] = 1
    return tokens_BT, segment_ids_BT
