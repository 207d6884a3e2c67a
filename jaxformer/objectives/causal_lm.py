"""Causal language modelling: predict each token from those before it (Radford 2018, eq. 1).

B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives.shared import checked, dropout_key, mean

FAMILIES = ("decoder",)
LAYOUTS = ("windows", "packed")


@dataclasses.dataclass(frozen=True)
class Config:
    """z_loss: weight of log(Z)^2 (Chowdhery 2022); label_smoothing (Szegedy 2016); chunk: tokens
    whose logits are held at once (0: by vocabulary and platform)."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    chunk: int = 0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(
                f"objective.label_smoothing={self.label_smoothing} must be in [0, 1); 0.1 is usual"
            )
        if self.chunk < 0:
            raise UserError(f"objective.chunk={self.chunk} must be at least 0; 0 chooses by itself")


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, targets and weights, each [B, T]."""

    @checked(targets="BT", weights="BT")
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden_BTD = model.apply(params, batch, key=drop).hidden_BTD
        features_BTD, table_VD, bias_V = model.unembed(params, hidden_BTD)
        # Smoothing and z-loss shape training; evaluation reports the plain likelihood.
        total, count, correct = ops.linear_cross_entropy(
            features_BTD, table_VD, batch["targets"], bias_V=bias_V, weights=batch["weights"],
            z_loss=config.z_loss if train else 0.0,
            label_smoothing=config.label_smoothing if train else 0.0,
            soft_cap=model.config.logit_soft_cap or None, chunk=config.chunk or None,
        )  # fmt: skip
        return mean(total, count), {"loss": (total, count), "accuracy": (correct, count)}

    return loss_fn
