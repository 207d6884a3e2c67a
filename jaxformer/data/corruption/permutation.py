"""Permutation language modelling: the last tokens of a random order are predicted.

Yang et al. 2019, sections 2.2 and 2.3: of an order of all tokens, only the last 1 / K are
predicted, spans of one to five that stand in a context of K times their length. The tokens before
them in the order are seen by all; each predicted token sees those and the predicted ones before
itself.

Shapes: R rows, N tokens in a row, P predictions.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.corruption.draws import draws, fraction
from jaxformer.data.layouts.base import Batch


def permutation(
    seq_len: int,
    special_ids: tuple[int, ...],
    pad: int,
    share: float = 6.0,
    max_span: int = 5,
):
    """Returns the transform. P = round(N / share); a row with n tokens that may be predicted has
    round(n / share) predictions, at least one.

    Special tokens are not predicted; they take a place in the order, so that a predicted token does
    not see one that has seen it.

    Args:
      seq_len: N.
      special_ids: ids that are never predicted.
      pad: the target where there is no prediction.
      share: K.
      max_span: the longest span; a span of length n has a chance proportional to 1 / n.
    """
    P = max(1, round(seq_len / share))

    def transform(batch: Batch, key_R: np.ndarray) -> Batch:
        tokens_RN = batch["tokens"]
        R, N = tokens_RN.shape
        real_RN = batch.get("segment_ids", np.ones_like(tokens_RN)) > 0
        plain_RN = real_RN & ~np.isin(tokens_RN, special_ids)
        lengths_RN, offsets_RN, fill_RN, order_RN = (draws(key_R, s, N) for s in (1, 2, 3, 4))
        hidden_RN = np.zeros((R, N), bool)
        for row in range(R):
            able = int(plain_RN[row].sum())
            goal = min(P, able, max(1, round(able / share))) if able else 0
            hidden_RN[row] = chosen(
                plain_RN[row], goal, share, max_span, fraction(lengths_RN[row]),
                fraction(offsets_RN[row]), fill_RN[row],
            )  # fmt: skip
        # The order: -1 what all see, else a rank.
        rank_RN = np.argsort(np.argsort(order_RN, axis=1), axis=1)
        rank_RN[plain_RN & ~hidden_RN] = -1
        # A predicted token does not see itself; all others do.
        self_RN = np.where(hidden_RN, rank_RN, rank_RN + 1)
        blind = (self_RN[:, :, None] <= rank_RN[:, None, :]) & ~(plain_RN & ~hidden_RN)[:, None, :]
        blind |= ~real_RN[:, None, :]
        row_M, column_M = np.nonzero(hidden_RN)
        count_R = hidden_RN.sum(axis=1)
        slot_M = np.arange(len(row_M)) - np.repeat(np.cumsum(count_R) - count_R, count_R)
        mapping = np.zeros((R, P, N), np.float32)
        mapping[row_M, slot_M, column_M] = 1.0
        targets = np.full((R, P), pad, np.int32)
        targets[row_M, slot_M] = tokens_RN[row_M, column_M]
        kept = ("tokens", "segment_ids", "positions", "token_types")
        return {
            **{name: batch[name] for name in kept if name in batch},
            "perm_mask": blind,
            "target_mapping": mapping,
            "targets": targets,
            "weights": (np.arange(P) < count_R[:, None]).astype(np.float32),
        }

    return transform


def chosen(
    plain_N: np.ndarray,
    goal: int,
    share: float,
    max_span: int,
    lengths_N: np.ndarray,
    offsets_N: np.ndarray,
    fill_N: np.ndarray,
) -> np.ndarray:
    """Returns which tokens of a row are predicted: spans in their contexts from left to right, then
    single ones until there are as many as wanted.

    Args:
      plain_N: which may be.
      goal: how many; no more than there are.
      share: tokens of context for each that is predicted.
      max_span: the longest span.
      lengths_N: random numbers in [0, 1), the spans' lengths.
      offsets_N: and their places in their contexts.
      fill_N: random integers, which single ones.
    """
    hidden_N = np.zeros(len(plain_N), bool)
    weights = 1.0 / np.arange(1, max_span + 1)
    bounds = np.cumsum(weights / weights.sum())
    cursor = found = number = 0
    while cursor < len(plain_N) and found < goal:
        length = 1 + int(np.searchsorted(bounds[:-1], lengths_N[number], side="right"))
        length = min(length, goal - found)
        context = max(length, int(length * share))
        begin = cursor + int(offsets_N[number] * (context - length + 1))
        span_N = slice(begin, begin + length)
        if begin + length <= len(plain_N):
            hidden_N[span_N] = plain_N[span_N]
            found = int(hidden_N.sum())
        cursor, number = cursor + context, number + 1
    rest = np.flatnonzero(plain_N & ~hidden_N)
    single = rest[np.argsort(fill_N[rest], kind="stable")]
    hidden_N[single[: goal - found]] = True
    return hidden_N
