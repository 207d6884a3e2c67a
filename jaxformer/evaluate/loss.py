"""An objective's loss and metrics over a split: the mean over all of its real tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxformer.objectives.shared import Loss, Metrics


def make_eval_step(loss_fn: Loss, *, seed: int) -> Callable[..., Metrics]:
    """Returns `step(params, batch, index) -> metrics`; batch `index` always gets the same key."""

    def step(params: Any, batch: dict[str, jax.Array], index: jax.Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(seed), index)
        return loss_fn(params, batch, key, False)[1]

    return step


def evaluate(
    eval_step: Callable[..., Metrics],
    params: Any,
    batches: Iterable[tuple[int, Any]],
    *,
    predicts_text: bool = True,
    bytes_per_token: float = 0.0,
) -> dict[str, float]:
    """Returns each metric's mean over the batches, weighted by real tokens (or rows).

    Args:
      eval_step: from `make_eval_step`, usually jitted.
      params: the model's parameters.
      batches: pairs (index, batch).
      predicts_text: whether the loss is the likelihood of text; then "perplexity" is returned.
      bytes_per_token: of the validation text; if known, "bits_per_byte" is returned too.

    Returns:
      {"loss": nats per token, ...}.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for index, batch in batches:
        for name, (total, count) in jax.device_get(eval_step(params, batch, index)).items():
            sums[name] = sums.get(name, 0.0) + float(total)
            counts[name] = counts.get(name, 0.0) + float(count)
    means = {name: sums[name] / max(counts[name], 1.0) for name in sums}
    if predicts_text:
        means["perplexity"] = math.exp(min(means["loss"], 700.0))
    if predicts_text and bytes_per_token:
        means["bits_per_byte"] = means["loss"] / math.log(2) / bytes_per_token
    return means
