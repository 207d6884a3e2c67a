"""Token classification: a tag for each token, such as a part of speech or a named entity.

Names are scored whole where words are known (evaluate/entities.py): here each tagged token counts
alike. B batch, T time, C tags.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.models import Model
from jaxformer.objectives.likelihood import check_smoothing
from jaxformer.objectives.shared import checked, dropout_key, mean, real_tokens

FAMILIES = ("encoder", "xlnet")
LAYOUTS = ("padded",)
LABELS = ("tags",)


@dataclasses.dataclass(frozen=True)
class Config:
    """label_smoothing (Szegedy 2016)."""

    label_smoothing: float = 0.0

    def __post_init__(self):
        check_smoothing(self.label_smoothing)


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {"num_tags": info.num_classes, "masked_head": False}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, segment_ids and tags, each [B, T].

    A tag of -1 (a special token, or a word's later pieces) has no weight.
    """

    @checked(segment_ids="BT", tags="BT")
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden_BTD = model.apply(params, batch, key=drop).hidden_BTD
        logits_BTC = model.readout(params, hidden_BTD, "tagger")
        weights_BT = real_tokens(batch) * (batch["tags"] >= 0)
        total, count = ops.cross_entropy(
            logits_BTC, batch["tags"], weights=weights_BT,
            label_smoothing=config.label_smoothing if train else 0.0,
        )  # fmt: skip
        hits = jnp.sum((jnp.argmax(logits_BTC, axis=-1) == batch["tags"]) * weights_BT)
        return mean(total, count), {"loss": (total, count), "accuracy": (hits, count)}

    return loss_fn
