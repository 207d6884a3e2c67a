"""The likelihood of given tokens, which most objectives are about: one loss, one set of knobs.

B batch, T time, P predicted tokens a row, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives.shared import Loss, checked, dropout_key, mean


@dataclasses.dataclass(frozen=True)
class Config:
    """z_loss: weight of log(Z)^2 (Chowdhery 2022); label_smoothing (Szegedy 2016); chunk: tokens
    whose logits are held at once (0: by vocabulary and platform)."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    chunk: int = 0

    def __post_init__(self):
        check_smoothing(self.label_smoothing)
        if self.chunk < 0:
            raise UserError(f"objective.chunk={self.chunk} must be at least 0; 0 chooses by itself")


def check_smoothing(value: float) -> None:
    """Raises UserError unless the label smoothing is in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"objective.label_smoothing={value} must be in [0, 1); 0.1 is usual")


def make(config: Config, model: Model, **shapes: str) -> Loss:
    """Returns the loss of a batch that holds its own targets and weights.

    Args:
      config: smoothing and z-loss, which shape training: evaluation reports the plain likelihood.
      model: gives a hidden state to each target.
      **shapes: of "targets", "weights" and what else the batch must hold, see `checked`.
    """

    @checked(**shapes)
    def loss_fn(params, batch, key: jax.Array | None, train: bool):
        drop = dropout_key(key, batch) if train else None
        hidden = model.apply(params, batch, key=drop).hidden_BTD
        total, count, correct = predict(
            model, params, hidden, batch["targets"], batch["weights"], chunk=config.chunk,
            z_loss=config.z_loss if train else 0.0,
            label_smoothing=config.label_smoothing if train else 0.0,
        )  # fmt: skip
        return mean(total, count), {"loss": (total, count), "accuracy": (correct, count)}

    return loss_fn


def predict(
    model: Model,
    params: dict,
    hidden_BPD: jax.Array,
    targets_BP: jax.Array,
    weights_BP: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (sum of the losses, sum of the weights, sum of the hits); never holds all logits.

    Args:
      model: its `unembed` turns hidden states to logits.
      params: its parameters.
      hidden_BPD: hidden states that predict.
      targets_BP: the tokens that they should predict.
      weights_BP: 0.0 where there is nothing to predict.
      z_loss, label_smoothing, chunk: see Config.
    """
    features_BPD, table_VD, bias_V = model.unembed(params, hidden_BPD)
    return ops.linear_cross_entropy(
        features_BPD, table_VD, targets_BP, bias_V=bias_V, weights=weights_BP,
        z_loss=z_loss, label_smoothing=label_smoothing,
        soft_cap=model.config.logit_soft_cap or None, chunk=chunk or None,
    )  # fmt: skip
