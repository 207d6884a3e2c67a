"""Which random blocks of keys a block of queries sees in BigBird: the published plan, drawn anew.

Zaheer et al., 2020, appendix D: none of the window, none of the first and last block. The published
programs draw them with numpy's seeded generator, from the first 1,024 tokens where the length is
one that they were trained with, and else from the first 2 r + 5 blocks. The same draws in the same
order give the same blocks. A decoder's plan, which the paper does not have, is `blocks_before`.
"""

from __future__ import annotations

import functools

import numpy as np

PAPER_LENGTHS = (1024, 3072, 4096)


@functools.lru_cache(maxsize=64)
def random_blocks(
    length: int, block: int, num_random: int, num_heads: int, seed: int, *, longest: int
) -> np.ndarray:
    """Returns int32 [N, length / block - 2, num_random]: of each head and inner block of queries.

    Args:
      length: T, a multiple of `block`, above (5 + 2 * num_random) * block.
      block: tokens of a block.
      num_random: r, random blocks that a block of queries sees.
      num_heads: N.
      seed: the published programs take the layer's number.
      longest: the model's max_length, from which the paper's own lengths draw.
    """
    draw = np.random.RandomState(seed).permutation
    blocks = length // block
    if length in PAPER_LENGTHS:
        inner = range(1, blocks - 1)
        heads = [_of_the_paper(draw, longest // block, 1024 // block, num_random)
                 for _ in range(num_heads)]  # fmt: skip
        return np.stack(heads)[:, : len(inner)].astype(np.int32)
    # All draw from the beginning that just has room enough.
    rows = [[_row(draw, row, 2 * num_random + 5)[:num_random] for _ in range(num_heads)]
            for row in range(1, blocks)]  # fmt: skip
    return np.array(rows[:-1], np.int32).swapaxes(0, 1)


@functools.lru_cache(maxsize=64)
def blocks_before(blocks: int, num_random: int, num_heads: int, seed: int) -> np.ndarray:
    """Returns int32 [N, blocks - 1, num_random] for a decoder: each row draws of what it may see.

    That is neither the first block, which all see, nor the row's own or the one before; -1 where
    there are fewer. A longer line begins with the same rows, so that a text can be written on.
    """
    draw = np.random.RandomState(seed).permutation
    plan = np.full((num_heads, blocks - 1, num_random), -1, np.int32)
    for row in range(3, blocks):
        for head in range(num_heads):
            chosen = 1 + draw(row - 2)[:num_random]
            plan[head, row - 1, : len(chosen)] = chosen
    return plan


def _row(draw, row: int, high: int) -> np.ndarray:
    """Returns the permitted blocks of [0, high) for a row, in a random order."""
    hidden = {row - 1, row, row + 1, 0, high - 1}
    if row == 1:
        hidden.add(high - 2)
    if row == high - 2:
        hidden.add(1)
    order = draw(np.arange(high, dtype=np.int32))
    return order[[b not in hidden for b in order.tolist()]]


def _of_the_paper(draw, blocks: int, last: int, r: int) -> np.ndarray:
    """Returns [blocks - 2, r]: drawn from the blocks before `last`, without the row's window."""
    inner, last, rows = np.arange(1, blocks - 1, dtype=np.int32), last - 1, []
    for row in range(1, blocks - 1):
        before, after = inner[: max(row - 2, 0)], inner[row + 1 : last]
        if row <= 2:
            choice = inner[row + 1 : last]
        elif row >= blocks - 3 or row - 2 > last:
            choice = inner[:last]
        elif row + 1 == last:
            choice = before
        else:
            choice = np.concatenate([before, after])
        rows.append(draw(choice)[:r])
    return np.stack(rows)
