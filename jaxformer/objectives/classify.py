"""Sequence classification: one label for a row.

B batch, T time, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives.shared import checked, dropout_key, mean

FAMILIES = ("encoder", "decoder")
LAYOUTS = ("padded",)


@dataclasses.dataclass(frozen=True)
class Config:
    """label_smoothing (Szegedy 2016)."""

    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(
                f"objective.label_smoothing={self.label_smoothing} must be in [0, 1); 0.1 is usual"
            )


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    if info.num_classes < 2:
        raise UserError(
            f"objective.name=classify found {info.num_classes} classes in the data; "
            "give labels by data.labels"
        )
    return {"num_classes": info.num_classes, "masked_head": False}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, segment_ids [B, T] and labels [B].

    A row of padding only (which fills the last evaluation batch) has no weight.
    """

    @checked(segment_ids="BT", labels="B")
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden_BTD = model.apply(params, batch, key=drop).hidden_BTD
        logits_BC = model.classify(params, hidden_BTD, batch)
        weights_B = jnp.any(batch["segment_ids"] != 0, axis=1).astype(jnp.float32)
        total, count = ops.cross_entropy(
            logits_BC, batch["labels"], weights=weights_B,
            label_smoothing=config.label_smoothing if train else 0.0,
        )  # fmt: skip
        hits = jnp.sum((jnp.argmax(logits_BC, axis=-1) == batch["labels"]) * weights_B)
        return mean(total, count), {"loss": (total, count), "accuracy": (hits, count)}

    return loss_fn
