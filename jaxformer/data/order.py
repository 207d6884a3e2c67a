"""Which rows a step sees: an epoch's permutation, computed for any index without a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ROUNDS = 4


def mix(x: Any) -> np.ndarray:
    """Scrambles 64-bit integers one to one (splitmix64's finaliser, Steele et al. 2014).

    Args:
      x: uint64 array or scalar.
    """
    with np.errstate(over="ignore"):  # of scalars; arrays wrap around silently
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def permute(index_R: np.ndarray, count: int, key_R: np.ndarray) -> np.ndarray:
    """Returns where a pseudo-random permutation of 0 … count-1 puts each index.

    A Feistel network on pairs of digits to the base ceil(sqrt(count)), walked until it falls inside
    (Black and Rogaway 2002, section 4): no memory, whatever the count.

    Args:
      index_R: int64, in [0, count).
      count: how many are permuted.
      key_R: uint64; equal keys are the same permutation.
    """
    base = np.uint64(math.isqrt(count - 1) + 1)
    round_keys = mix(key_R + np.arange(ROUNDS, dtype=np.uint64)[:, None])
    value_R = _rounds(index_R.astype(np.uint64), base, round_keys)
    while (outside := value_R >= np.uint64(count)).any():
        value_R[outside] = _rounds(value_R[outside], base, round_keys[:, outside])
    return value_R.astype(np.int64)


def _rounds(value_R: np.ndarray, base: np.uint64, round_keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(value_R, base)
    for key_R in round_keys:
        left, right = right, (left + mix(right ^ key_R) % base) % base
    return left * base + right


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


def keys(step: int, batch_size: int, seed: int, rows: np.ndarray) -> np.ndarray:
    """Returns 64 random bits for each of some places of a batch, the same for the same place.

    Args:
      step: from 0.
      batch_size: rows in a global batch.
      seed: of the run.
      rows: places in the global batch, int64.
    """
    seeded = mix(mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) ^ np.uint64(0x6A09E667F3BCC908))
    with np.errstate(over="ignore"):
        return mix(seeded + (step * batch_size + rows).astype(np.uint64))
