"""A language model mixed with its nearest neighbours in a datastore: kNN-LM (Khandelwal 2020).

p(y | x) = lambda p_knn(y | x) + (1 - lambda) p_lm(y | x), with the lambda and the temperature that
are best on the first half of a text, and told of the second. Q tokens, K neighbours, D key width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import UserError
from jaxformer.evaluate import datastore, likelihood
from jaxformer.evaluate.datastore import Datastore, Seen
from jaxformer.ops import retrieval

LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
# Temperatures by default, as parts of the keys' variance: distances grow with it.
PARTS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)

_QUERIES = 16384  # for which the store is read from disk once

# (store, q_QD, K) -> (squared distances_QK, values_QK); `datastore.search` is exact.
Search = Callable[[Datastore, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Sweep(NamedTuple):
    """The loss of each choice, in nats a token, on both halves of a text.

    loss: {(lambda, temperature): (first half, second half)}. base: the model's own. tokens: of the
    halves. best: the choice with the lowest loss on the first half.
    """

    loss: dict[tuple[float, float], tuple[float, float]]
    base: tuple[float, float]
    tokens: tuple[int, int]

    @property
    def best(self) -> tuple[float, float]:
        return min(self.loss, key=lambda choice: self.loss[choice][0])


def sweep(
    store: Datastore,
    model: Any,
    params: Any,
    tokenizer: Any,
    ids: likelihood.Ids,
    *,
    neighbours: int = 64,
    lambdas: Sequence[float] = LAMBDAS,
    temperatures: Sequence[float] = (),
    max_length: int = 0,
    stride: int = 0,
    batch_size: int = 8,
    max_tokens: int = 0,
    search: Search = datastore.search,
) -> Sweep:
    """Returns the loss on a text for every lambda and temperature; each neighbour is sought once.

    Args:
      store: of this model, from `datastore.open_datastore`.
      model, params, tokenizer: the model.
      ids: a text that is not in the store.
      neighbours: K, from 1 on.
      lambdas: shares of the neighbours' distribution, 0 to 1.
      temperatures: what squared distances are divided by; none: parts of the keys' variance.
      max_length, stride, batch_size: see `likelihood.rolling_loglikelihood`.
      max_tokens: most tokens that are scored, from all over the text; 0: all.
      search: finds the neighbours.

    Raises:
      UserError: a number out of range, or a text too short.
    """
    temperatures = tuple(temperatures) or tuple(part * store.meta["variance"] for part in PARTS)
    if neighbours < 1:
        raise UserError(f"--neighbours={neighbours}: give 1 or more")
    if not all(0 <= share <= 1 for share in lambdas):
        raise UserError(f"--lambdas={','.join(map(str, lambdas))}: each must be from 0 to 1")
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UserError("--temperature: each must be above 0")
    windows = datastore.cut(model, tokenizer, ids, max_length, stride, max_tokens)
    if len(windows) < 2:  # one window of a short text, in two
        (window,) = windows
        if window.scored < 2:
            raise UserError("two tokens must be scored at least, one to choose by and one to tell")
        first = window.scored - window.scored // 2
        cut = len(window.tokens) - (window.scored - first)
        windows = [window._replace(tokens=window.tokens[:cut], scored=first),
                   window._replace(pair=1, scored=window.scored - first)]  # fmt: skip
    choices = [(share, temperature) for temperature in temperatures for share in lambdas]
    total = {choice: np.zeros(2) for choice in choices}
    base, tokens = np.zeros(2), np.zeros(2, int)
    for seen in _many(datastore.read(model, params, windows, batch_size)):
        halves_Q = (2 * seen.window_S >= len(windows)).astype(int)

        def of_halves(log_prob_Q: Any, halves_Q: np.ndarray = halves_Q) -> np.ndarray:
            return np.bincount(halves_Q, np.asarray(log_prob_Q, np.float64), minlength=2)

        base += of_halves(seen.log_prob_S)
        tokens += np.bincount(halves_Q, minlength=2)
        distances_QK, values_QK = search(store, seen.keys_SD, neighbours)
        for temperature in temperatures:
            knn_Q = retrieval.knn_log_prob_of(
                distances_QK, values_QK, seen.target_S, temperature=temperature
            )
            for share in lambdas:
                mixed_Q = retrieval.interpolate(seen.log_prob_S, knn_Q, share)
                total[share, temperature] += of_halves(mixed_Q)
    loss = {choice: tuple((-sums / tokens).tolist()) for choice, sums in total.items()}
    return Sweep(loss, tuple((-base / tokens).tolist()), tuple(tokens.tolist()))


def _many(batches: Iterator[Seen]) -> Iterator[Seen]:
    """Yields batches joined to as many tokens as a store is searched for at once."""
    kept: list[Seen] = []
    for batch in batches:
        kept.append(batch)
        if sum(len(seen.target_S) for seen in kept) >= _QUERIES:
            yield Seen(*map(np.concatenate, zip(*kept)))
            kept = []
    if kept:
        yield Seen(*map(np.concatenate, zip(*kept)))


def table(found: Sweep) -> list[str]:
    """Returns the lines that tell a sweep: the first half's perplexities, the choice, the second's.

    The best is marked by a star; "inf" says that some token had no probability at all.
    """
    shares = list(dict.fromkeys(share for share, _ in found.loss))
    temperatures = list(dict.fromkeys(temperature for _, temperature in found.loss))
    lines = [f"  perplexity of the first half, {found.tokens[0]:,} tokens, by temperature"]
    lines.append("  lambda " + "".join(f"{temperature:>11.4g} " for temperature in temperatures))
    for share in shares:
        cells = ""
        for temperature in temperatures:
            mark = "*" if (share, temperature) == found.best else " "
            cells += f"{perplexity(found.loss[share, temperature][0]):>11.3f}{mark}"
        lines.append(f"  {share:<7g}{cells}".rstrip())
    share, temperature = found.best
    lines.append(f"  perplexity of the second half, {found.tokens[1]:,} tokens")
    lines.append(f"  model alone {perplexity(found.base[1]):>12.3f}")
    mixed = perplexity(found.loss[found.best][1])
    lines.append(
        f"  with neighbours {mixed:>8.3f}   lambda={share:g} temperature={temperature:.4g}"
    )
    return lines


def perplexity(loss: float) -> float:
    """Returns exp(loss), inf where that is too large."""
    return math.exp(loss) if loss < 700 else math.inf
