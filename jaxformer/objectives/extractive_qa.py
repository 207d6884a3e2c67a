"""Extractive question answering: where in the text an answer begins and ends (Devlin 2019, 4.2).

A window of a long text that does not hold the answer has it at its first token, [CLS]. B batch, T
time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.models import Model
from jaxformer.objectives.shared import checked, dropout_key, mean, real_rows

FAMILIES = ("encoder", "xlnet")
LAYOUTS = ("qa",)
FAR = -1e30  # a logit that no token reaches; finite, or its gradient would be NaN


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {"span_head": True, "masked_head": False}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, segment_ids [B, T], start and end [B].

    The loss is the mean of that of the start and that of the end; "accuracy" asks for both. A row
    of padding only has no weight.
    """

    @checked(segment_ids="BT", start="B", end="B")
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden_BTD = model.apply(params, batch, key=drop).hidden_BTD
        start_BT, end_BT = span_logits(model, params, hidden_BTD, batch)
        weights_B = real_rows(batch)
        start, count = ops.cross_entropy(start_BT, batch["start"], weights=weights_B)
        end, _ = ops.cross_entropy(end_BT, batch["end"], weights=weights_B)
        start_B = jnp.argmax(start_BT, axis=-1) == batch["start"]
        end_B = jnp.argmax(end_BT, axis=-1) == batch["end"]
        total = (start + end) / 2
        return mean(total, count), {
            "loss": (total, count),
            "start_accuracy": (jnp.sum(start_B * weights_B), count),
            "end_accuracy": (jnp.sum(end_B * weights_B), count),
            "accuracy": (jnp.sum(start_B * end_B * weights_B), count),
        }

    return loss_fn


def span_logits(
    model: Model, params: Any, hidden_BTD: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits [B, T] of each token to be an answer's first, and to be its last.

    Those of padding are FAR below any other.
    """
    logits_BT2 = model.readout(params, hidden_BTD, "span")
    real_BT = batch["segment_ids"] != 0
    start_BT, end_BT = (jnp.where(real_BT, logits_BT2[..., i], FAR) for i in (0, 1))
    return start_BT, end_BT
