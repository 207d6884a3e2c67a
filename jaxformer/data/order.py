"""Which rows a step sees: an epoch's permutation, computed for any index without a table."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 6


def mix(x: Any) -> np.ndarray:
    """Scrambles 64-bit integers one to one (splitmix64's finaliser, Steele et al. 2014).

    Args:
      x: uint64 array or scalar.
    """
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def permute(index: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """Returns where a pseudo-random permutation of 0 … count-1 puts each index.

    A Feistel network on the smallest even number of bits that holds `count`, walked until it falls
    inside (Black and Rogaway 2002): no memory, whatever the count.

    Args:
      index: int64, in [0, count).
      count: how many are permuted.
      key: uint64 of index's shape; equal keys are the same permutation.
    """
    half = np.uint64(max(1, (max(1, count - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    with np.errstate(over="ignore"):
        turns = np.arange(ROUNDS, dtype=np.uint64).reshape(-1, *[1] * np.ndim(key))
        keys = mix(key + turns)  # one for each round
    value = np.array(index, np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & low
        for round_key in keys[:, outside]:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(count)
    return value.astype(np.int64)


def draw(
    step: int, batch_size: int, count: int, max_shift: int, seed: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows, moved by how much, some places of a training batch hold.

    Row number step * batch_size + place of an endless sequence of epochs; an epoch has every row
    once, in an order of its own, and one shift for all its rows.

    Args:
      step: from 0.
      batch_size: rows in a global batch.
      count: rows in an epoch.
      max_shift: the largest shift.
      seed: of the run.
      rows: places in the global batch, int64.

    Returns:
      rows_R and shifts_R, int64.
    """
    index_R = step * batch_size + rows
    epoch_R = index_R // count
    with np.errstate(over="ignore"):
        key_R = mix(mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) + epoch_R.astype(np.uint64))
    shift_R = (mix(key_R) % np.uint64(max_shift + 1)).astype(np.int64)
    return permute(index_R % count, count, key_R), shift_R
