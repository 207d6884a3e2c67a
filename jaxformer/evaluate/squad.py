"""Extractive question answering by the rules of SQuAD: windows, n-best decoding, EM and F1.

N tokens of a context, C tokens of it in one window, W windows, M most tokens of an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.errors import UserError


class Window(NamedTuple):
    """What a model said of a part of a context.

    first: index, in the whole context, of the window's first context token.
    start_logits_C, end_logits_C: of the context's tokens alone, without question and [SEP].
    null_score: start logit plus end logit of the first token ([CLS]): of "there is no answer".
    """

    first: int
    start_logits_C: np.ndarray
    end_logits_C: np.ndarray
    null_score: float = 0.0


class Candidate(NamedTuple):
    """An answer: its text, where it begins in the context (-1: no answer), and how likely it is."""

    text: str
    start: int
    score: float
    probability: float


class Answer(NamedTuple):
    """The text to give ("" for none), null score minus best score, and the n best, best first."""

    text: str
    null_odds: float
    n_best: list[Candidate]


def spans(num_tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of windows over a context, each begun `stride` tokens after the last.

    Args:
      num_tokens: N, of the context.
      room: most context tokens in one window: what question and special tokens leave.
      stride: tokens between the beginnings of two windows; `room` - `stride` overlap.

    Raises:
      UserError: no room, or a stride that would leave tokens out.
    """
    if room < 1:
        raise UserError(
            f"the question leaves {room} tokens of room for the context; cut it, or raise "
            "max_length"
        )
    if not 1 <= stride <= room:
        raise UserError(f"stride is {stride}; it must be 1 to {room}, the room for the context")
    begins = range(0, max(num_tokens - room, 0) + stride, stride)
    return [(begin, min(begin + room, num_tokens)) for begin in begins]


def max_context(spans_W: Sequence[tuple[int, int]], num_tokens: int) -> np.ndarray:
    """Returns, for each context token, the window [N] in which it has the most context.

    The context of a token is the shorter of its two sides; a window's length decides among equals
    (by 0.01 a token, as in BERT's published code), and then the earlier window.
    """
    at_N = np.arange(num_tokens)
    best_N, window_N = np.full(num_tokens, -np.inf), np.zeros(num_tokens, int)
    for index, (begin, end) in enumerate(spans_W):
        score_N = np.minimum(at_N - begin, end - 1 - at_N) + 0.01 * (end - begin)
        better_N = (begin <= at_N) & (at_N < end) & (score_N > best_N)
        best_N[better_N], window_N[better_N] = score_N[better_N], index
    return window_N


def decode(
    context: str,
    offsets_N2: np.ndarray | Sequence[tuple[int, int]],
    windows: Sequence[Window],
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer: bool = False,
    threshold: float = 0.0,
) -> Answer:
    """Returns the best answer and the n best, over all windows of one question (Devlin 2019, 4.2).

    A span's score is its start logit plus its end logit. All spans are looked at, each in the
    window in which its first token has the most context; of those with the same text the best
    counts.

    Args:
      context: the text that answers are cut from.
      offsets_N2: where each context token begins and ends in it, in characters.
      windows: of this question; together they hold every context token.
      n_best: candidates to return, and among which probabilities are shared out.
      max_answer_length: M, in tokens.
      no_answer: whether there may be none (SQuAD 2.0). Then "" is a candidate too, with the lowest
        null score of the windows, and is the answer if the null odds exceed `threshold`.
      threshold: tuned on a development set; see `best_threshold`.
    """
    offsets_N2 = np.asarray(offsets_N2, int).reshape(-1, 2)
    begins_N2 = [(w.first, w.first + len(w.start_logits_C)) for w in windows]
    window_N = max_context(begins_N2, len(offsets_N2))
    scores, firsts, lasts = [], [], []
    for index, window in enumerate(windows):
        C = len(window.start_logits_C)
        beyond = np.full(max_answer_length, -np.inf)
        ends = np.concatenate([np.asarray(window.end_logits_C, float), beyond])
        ends_CM = np.lib.stride_tricks.sliding_window_view(ends, max_answer_length)[:C]
        scores_CM = np.asarray(window.start_logits_C, float)[:, None] + ends_CM
        scores_CM = np.where((window_N[window.first :][:C] == index)[:, None], scores_CM, -np.inf)
        first_S, more_S = np.nonzero(np.isfinite(scores_CM))
        scores.append(scores_CM[first_S, more_S])
        firsts.append(first_S + window.first)
        lasts.append(first_S + more_S + window.first)
    score_S, first_S, last_S = map(np.concatenate, (scores, firsts, lasts))
    found: dict[str, tuple[int, float]] = {}
    for i in np.argsort(-score_S, kind="stable"):
        begin, end = offsets_N2[first_S[i], 0], offsets_N2[last_S[i], 1]
        text = context[begin:end]
        start = int(begin) + len(text) - len(text.lstrip())  # some tokens hold the blank before
        if text.strip() and text.strip() not in found:
            found[text.strip()] = (start, float(score_S[i]))
            if len(found) == n_best:
                break
    best = max((score for _, score in found.values()), default=-np.inf)
    null_score = float(min(window.null_score for window in windows))
    null_odds = null_score - best
    if no_answer:
        found[""] = (-1, null_score)
    ranked = sorted(found.items(), key=lambda item: -item[1][1])
    weights = np.exp([score - ranked[0][1][1] for _, (_, score) in ranked] if ranked else [])
    candidates = [
        Candidate(text, start, score, float(weight / weights.sum()))
        for (text, (start, score)), weight in zip(ranked, weights, strict=True)
    ]
    texts = [candidate.text for candidate in candidates if candidate.text]
    none = not texts or (no_answer and null_odds > threshold)
    return Answer("" if none else texts[0], float(null_odds), candidates)


def join_windows(
    rows: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]], null_at: int = 0
) -> tuple[np.ndarray, list[Window]]:
    """Returns (offsets_N2, windows) for `decode`, of the rows of one question in their order.

    Args:
      rows: (first, spans_T2, start_logits_T, end_logits_T) of each window: index in the context of
        its first context token; where in the context each token stands, its first character and
        one more than its last, -1 for tokens not of the context.
      null_at: column of [CLS], whose logits are those of "there is no answer".
    """
    parts, windows, known = [], [], 0
    for first, spans_T2, start_T, end_T in rows:
        columns_C = np.flatnonzero(np.asarray(spans_T2)[:, 0] >= 0)
        parts.append(np.asarray(spans_T2)[columns_C][known - first :])
        known = first + len(columns_C)
        null_score = float(start_T[null_at]) + float(end_T[null_at])
        windows.append(Window(first, start_T[columns_C], end_T[columns_C], null_score))
    return np.concatenate(parts), windows


def normalise(text: str) -> str:
    """Returns the text in lower case, without punctuation (ASCII), articles and further blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, truth: str) -> float:
    """Returns 1.0 if both texts are the same once normalised, else 0.0."""
    return float(normalise(prediction) == normalise(truth))


def token_f1(prediction: str, truth: str, version: int = 2) -> float:
    """Returns the F1 of the words that both texts share, as bags, once normalised.

    Without any word on one side it is, by the rules of version 2, 1.0 if the other has none either;
    by those of version 1 it is 0.0.
    """
    given, true = normalise(prediction).split(), normalise(truth).split()
    if version == 2 and not (given and true):
        return float(given == true)
    shared = sum((Counter(given) & Counter(true)).values())
    return 2 * shared / (len(given) + len(true)) if shared else 0.0


def score(
    predictions: Mapping[str, str],
    truths: Mapping[str, Sequence[str]],
    *,
    version: int = 1,
) -> dict[str, float]:
    """Returns EM and F1 in 0 … 100, as the official scripts of SQuAD 1.1 and 2.0 do.

    Args:
      predictions: the answer to each question, by its id; "" is "no answer".
      truths: the right answers to each question; of several the nearest counts, none means that
        the question has no answer (version 2).
      version: 1 or 2.

    Returns:
      {"exact", "f1", "total"}, and for version 2 "has_answer_exact", "has_answer_f1",
      "no_answer_exact" and "no_answer_f1" where there are such questions.

    Raises:
      UserError: no question at all, one without a prediction, or, in version 1, without an answer.
    """
    exact, f1 = per_question(predictions, truths, version=version)
    groups = {"": list(truths)}
    if version == 2:
        groups["has_answer_"] = [name for name, answers in truths.items() if answers]
        groups["no_answer_"] = [name for name, answers in truths.items() if not answers]
    scores = {
        prefix + metric: 100.0 * sum(values[name] for name in names) / len(names)
        for prefix, names in groups.items()
        if names
        for metric, values in (("exact", exact), ("f1", f1))
    }
    return scores | {"total": float(len(truths))}


def per_question(
    predictions: Mapping[str, str], truths: Mapping[str, Sequence[str]], *, version: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns (exact match, F1), in 0 … 1, of each question; see `score`."""
    if version not in (1, 2):
        raise UserError(f"SQuAD version {version}: give 1 (every question has an answer) or 2")
    if not truths:
        raise UserError("there are no questions to score; give one at least")
    missing = [name for name in truths if name not in predictions]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(truths)} questions have no prediction, the first is "
            f'{missing[0]!r}; give "" for no answer'
        )
    exact, f1 = {}, {}
    for name, answers in truths.items():
        if version == 2:
            answers = [answer for answer in answers if normalise(answer)] or [""]
        elif not answers:
            raise UserError(f"question {name!r} has no answer, as in SQuAD 2.0: set version=2")
        exact[name] = max(exact_match(predictions[name], answer) for answer in answers)
        f1[name] = max(token_f1(predictions[name], answer, version) for answer in answers)
    return exact, f1


def best_threshold(
    answers: Mapping[str, Answer], truths: Mapping[str, Sequence[str]], *, metric: str = "f1"
) -> tuple[float, float]:
    """Returns (threshold, score in 0 … 100) of the null odds that give the best score (SQuAD 2.0).

    Choose it on a development set, and pass it to `decode` on the test set.

    Args:
      answers: from `decode` with no_answer, by question.
      truths: see `score`.
      metric: "f1" or "exact".
    """
    given = {  # the best answer that is one, whatever its null odds
        name: next((c.text for c in answer.n_best if c.text), "")
        for name, answer in answers.items()
    }
    exact, f1 = per_question(given, truths, version=2)
    values = {"f1": f1, "exact": exact}[metric]
    order = sorted(truths, key=lambda name: answers[name].null_odds)
    # Below all odds no question is answered; each step upwards answers one more.
    total = float(sum(not truths[name] for name in order))
    best, threshold = total, -np.inf
    for place, name in enumerate(order):
        total += values[name] - (not truths[name])
        odds = answers[name].null_odds
        tied = place + 1 < len(order) and answers[order[place + 1]].null_odds == odds
        if total > best and not tied:
            best, threshold = total, odds
    return float(threshold), 100.0 * best / len(order)
