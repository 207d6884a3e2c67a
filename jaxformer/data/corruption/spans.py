"""Span corruption: spans are replaced by sentinels, the target names each and what it stood for.

Raffel et al. 2020, section 3.1.4: of a text "a b c d e" the source is "a <0> d <1>" and the target
"<0> b c <1> e", where <0>, <1> … are the tokens <extra_id_0>, <extra_id_1> ….

Shapes: R rows, N tokens in a row, K spans.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.corruption.draws import bodies, draws, teach
from jaxformer.data.layouts.base import Batch
from jaxformer.data.layouts.seq2seq import Ends
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError


def counts(length: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens of a text are taken out, in how many spans; none of a text of one."""
    noise = np.clip(np.round(length * rate), 1, np.maximum(1, length - 1)).astype(np.int64)
    spans = np.maximum(1, np.round(noise / mean_span)).astype(np.int64)
    spans = np.minimum(spans, np.minimum(noise, length - noise))
    return np.where(length > 1, noise, 0), np.where(length > 1, spans, 0)


def raw_length(
    source_len: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
    *,
    source_specials: int = 1,
    target_specials: int = 1,
) -> tuple[int, int]:
    """Returns how long a text must be to fill a source: T5's `random_spans_helper`.

    Args:
      source_len: S.
      rate: share of the tokens taken out.
      mean_span: their mean length.
      source_specials: tokens such as </s> that a source has besides.
      target_specials: those that a target has.

    Returns:
      N (512 → 568), for data.seq_len, and T, which follows from it (114).
    """
    length = np.arange(1, 2 + int(source_len / (1 - rate)) + source_len)
    noise, spans = counts(length, rate, mean_span)
    fits = length - noise + spans + source_specials <= source_len
    last = len(fits) - 1 if fits.all() else int(np.argmin(fits)) - 1
    if last < 1:
        raise UserError(f"a source of {source_len} tokens is too short for span corruption")
    return int(length[last]), int(noise[last] + spans[last]) + target_specials


def span_corruption(
    seq_len: int,
    frame: Template,
    ends: Ends,
    sentinels: tuple[int, ...],
    pad: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
):
    """Returns the transform; S and T are what rows of seq_len tokens need at most.

    A text of n tokens loses round(rate * n) of them, in round(that / mean_span) spans; their
    lengths, and those of what lies between them, are drawn so that all ways to part the text are
    equally likely. A text begins with a token that stays, and ends with a span: as T5's own code
    has it, the only span of a text of less than 30 tokens is its end.

    Args:
      seq_len: N.
      frame: what stands around a row's text.
      ends: special tokens of sources and targets.
      sentinels: ids of <extra_id_0>, <extra_id_1> ….
      pad: fills rows.
      rate: share of the tokens taken out.
      mean_span: mean length of spans.

    Raises:
      UserError: fewer sentinels than spans.
    """
    length = np.arange(1, seq_len - frame.length + 1)
    noise, spans = counts(length, rate, mean_span)
    if len(sentinels) < spans.max(initial=0):
        raise UserError(
            f"span corruption of rows of {seq_len} tokens needs {spans.max()} sentinels, and the "
            f"tokenizer has {len(sentinels)}; set --config.data.extra_ids={max(100, spans.max())}"
        )
    S = int((length - noise + spans).max(initial=1)) + ends.source_length
    T = int((noise + spans).max(initial=1)) + ends.target_length
    names = np.array([*sentinels, pad], np.int32)

    def transform(batch: Batch, key_R: np.ndarray) -> Batch:
        tokens_RN, length_R = bodies(batch, frame)
        interval_RN = intervals(key_R, length_R, tokens_RN.shape[1], rate, mean_span)
        text_RN = np.arange(tokens_RN.shape[1]) < length_R[:, None]
        hidden_RN = text_RN & (interval_RN % 2 == 1)
        first_RN = hidden_RN.copy()
        first_RN[:, 1:] &= interval_RN[:, 1:] != interval_RN[:, :-1]
        names_RN = names[np.minimum(interval_RN // 2, len(names) - 1)]
        kept_RN = (text_RN & ~hidden_RN) | first_RN
        source = np.where(first_RN, names_RN, tokens_RN)[kept_RN], kept_RN.sum(axis=1)
        both_RN2 = np.stack([first_RN, hidden_RN], axis=2)
        target = np.stack([names_RN, tokens_RN], axis=2)[both_RN2], both_RN2.sum(axis=(1, 2))
        return teach(source, target, (S, T), ends, pad, length_R > 0)

    return transform


def intervals(
    key_R: np.ndarray, length_R: np.ndarray, width: int, rate: float, mean_span: float
) -> np.ndarray:
    """Returns, for each token, the number of its stretch [R, N]: even ones stay, odd ones are
    taken out."""
    noise_R, spans_R = counts(length_R, rate, mean_span)
    K = max(1, int(spans_R.max(initial=0)))
    kept_RK = _parts(draws(key_R, 1, width), length_R - noise_R, spans_R, K)
    hidden_RK = _parts(draws(key_R, 2, width), noise_R, spans_R, K)
    stop_RJ = np.cumsum(np.stack([kept_RK, hidden_RK], axis=2).reshape(len(key_R), 2 * K), axis=1)
    marks = np.zeros((len(key_R), width + 1), np.int64)
    np.add.at(marks, (np.arange(len(key_R))[:, None], np.minimum(stop_RJ, width)), 1)
    return np.cumsum(marks, axis=1)[:, :width]


def _parts(drawn_RN: np.ndarray, total_R: np.ndarray, parts_R: np.ndarray, K: int) -> np.ndarray:
    """Cuts totals into so many positive parts, all ways equally likely: [R, K], 0 for no part."""
    place = np.arange(drawn_RN.shape[1])
    inner_RN = place < (total_R - 1)[:, None]  # a cut may follow any item but the last
    drawn_RN = np.where(inner_RN, drawn_RN, np.uint64(2**64 - 1))
    rank_RN = np.argsort(np.argsort(drawn_RN, axis=1, kind="stable"), axis=1, kind="stable")
    cut_RN = inner_RN & (rank_RN < (parts_R - 1)[:, None])
    part_RN = np.cumsum(cut_RN, axis=1) - cut_RN
    flat = part_RN + np.arange(len(total_R))[:, None] * K
    used_RN = (place < total_R[:, None]) & (parts_R > 0)[:, None]
    return np.bincount(flat[used_RN], minlength=len(total_R) * K).reshape(-1, K)
