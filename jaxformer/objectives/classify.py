"""Sequence classification, one label for a row, or regression, one number for a row.

Numbers (data.labels="value": the similarity of two sentences, say) are met by one output and the
squared error (Devlin 2019, 4.1, on STS-B). B batch, T time, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives.likelihood import check_smoothing
from jaxformer.objectives.shared import checked, dropout_key, mean, real_rows

FAMILIES = ("encoder", "decoder", "xlnet")
LAYOUTS = ("padded",)
LABELS = ("field", "package", "value")


@dataclasses.dataclass(frozen=True)
class Config:
    """label_smoothing (Szegedy 2016), of classes."""

    label_smoothing: float = 0.0

    def __post_init__(self):
        check_smoothing(self.label_smoothing)


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    if info.class_names:
        return {"num_classes": info.num_classes, "masked_head": False}
    if config.label_smoothing:
        raise UserError(
            f"objective.label_smoothing={config.label_smoothing} is for classes, but "
            'data.labels="value" gives numbers; set it to 0'
        )
    return {"num_classes": 1, "masked_head": False}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, segment_ids [B, T] and labels [B].

    Labels are classes (int), or numbers (float), for which the model must have one output. A row of
    padding only (which fills the last evaluation batch) has no weight.
    """

    @checked(segment_ids="BT", labels="B")
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden_BTD = model.apply(params, batch, key=drop).hidden_BTD
        logits_BC = model.classify(params, hidden_BTD, batch)
        weights_B = real_rows(batch)
        if jnp.issubdtype(batch["labels"].dtype, jnp.floating):
            error_B = jnp.where(weights_B > 0, logits_BC[:, 0] - batch["labels"], 0.0)
            total, count = jnp.sum(error_B**2), jnp.sum(weights_B)
            away = jnp.sum(jnp.abs(error_B))
            return mean(total, count), {"loss": (total, count), "absolute_error": (away, count)}
        total, count = ops.cross_entropy(
            logits_BC, batch["labels"], weights=weights_B,
            label_smoothing=config.label_smoothing if train else 0.0,
        )  # fmt: skip
        hits = jnp.sum((jnp.argmax(logits_BC, axis=-1) == batch["labels"]) * weights_B)
        return mean(total, count), {"loss": (total, count), "accuracy": (hits, count)}

    return loss_fn
