"""Text infilling: spans become one mask each, sentences change places; the target is the text.

Lewis et al. 2020, section 2.2.

Shapes: R rows, N tokens in a row, G gaps between the tokens that stay.
"""

from __future__ import annotations

import math

import numpy as np

from jaxformer.data.corruption.draws import bodies, draws, fraction, joined, teach
from jaxformer.data.layouts.base import Batch
from jaxformer.data.layouts.seq2seq import Ends
from jaxformer.data.tokenizers import Template


def text_infilling(
    seq_len: int,
    frame: Template,
    ends: Ends,
    mask_id: int,
    sentence_ends: tuple[int, ...],
    pad: int,
    rate: float = 0.3,
    mean_span: float = 3.0,
    permute: bool = True,
):
    """Returns the transform.

    Of n tokens, round(rate * n) are masked, in spans whose lengths are drawn from a Poisson
    distribution; each becomes one mask. A span of length 0 is a mask that stands for nothing. No
    two spans touch.

    Args:
      seq_len: N.
      frame: what stands around a row's text.
      ends: special tokens of sources and targets.
      mask_id: the mask's id.
      sentence_ends: ids of the tokens that end a sentence.
      pad: fills rows.
      rate: share of the tokens masked.
      mean_span: the distribution's mean.
      permute: whether the source's sentences stand in a random order.
    """
    room = seq_len - frame.length
    sizes = room + ends.source_length, room + ends.target_length

    def transform(batch: Batch, key_R: np.ndarray) -> Batch:
        tokens_RN, length_R = bodies(batch, frame)
        sentence_RN, gap_RN, span_RN = (
            draws(key_R, stream, tokens_RN.shape[1] + 1) for stream in (1, 2, 3)
        )
        sources, targets = [], []
        for row, length in enumerate(length_R.tolist()):
            text = tokens_RN[row, :length]
            targets.append(text)
            if permute:
                text = shuffled(text, np.isin(text, sentence_ends), sentence_RN[row])
            sources.append(infilled(text, mask_id, rate, mean_span, gap_RN[row], span_RN[row]))
        return teach(joined(sources), joined(targets), sizes, ends, pad, length_R > 0)

    return transform


def shuffled(text: np.ndarray, last: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Returns the tokens with their sentences in a random order; `last` tells where one ends."""
    sentence = np.cumsum(last) - last
    rank = np.argsort(drawn[: sentence.max(initial=0) + 1], kind="stable")
    return text[np.argsort(rank[sentence], kind="stable")]


def infilled(
    text: np.ndarray,
    mask_id: int,
    rate: float,
    mean_span: float,
    gaps: np.ndarray,
    spans: np.ndarray,
) -> np.ndarray:
    """Returns the tokens with spans of them replaced by the mask; never longer than the text.

    Args:
      text: n tokens.
      mask_id: the mask's id.
      rate: share of the tokens masked.
      mean_span: mean length of a span.
      gaps: n + 1 random numbers, where spans go.
      spans: n + 1 random numbers, how long they are.
    """
    masked = round(rate * len(text))
    stay = len(text) - masked
    lengths = span_lengths(masked, mean_span, fraction(spans), stay + 1)
    length_G, chosen_G = np.zeros(stay + 1, np.int64), np.zeros(stay + 1, bool)
    at = np.argsort(gaps[: stay + 1], kind="stable")[: len(lengths)]
    length_G[at], chosen_G[at] = lengths, True
    kept = np.arange(stay) + np.cumsum(length_G)[:stay]
    both = np.stack([np.full(stay + 1, mask_id), np.append(text[kept], 0)], axis=1)
    return both[np.stack([chosen_G, np.arange(stay + 1) < stay], axis=1)].astype(np.int32)


def span_lengths(masked: int, mean: float, drawn: np.ndarray, most: int) -> np.ndarray:
    """Returns lengths from a Poisson distribution whose sum is `masked`: at most `most` of them, of
    which at most `masked` (zeros are left out first)."""
    if not masked:
        return np.zeros(0, np.int64)
    top = int(mean + 10 * math.sqrt(mean) + 10)
    chances = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(top)]
    lengths = np.searchsorted(np.cumsum(chances), drawn, side="right")
    total = np.cumsum(lengths)
    number = int(np.searchsorted(total, masked)) + 1
    lengths = lengths[:number]
    lengths[-1] += masked - int(lengths.sum())  # the last is cut (or, out of draws, gets the rest)
    zeros = max(0, min(int((lengths == 0).sum()), min(most, masked) - int((lengths > 0).sum())))
    keep = (lengths > 0) | (np.cumsum(lengths == 0) <= zeros)
    lengths = lengths[keep]
    if len(lengths) > most:  # no room to keep them apart
        lengths[most - 1] += lengths[most:].sum()
    return lengths[:most]
