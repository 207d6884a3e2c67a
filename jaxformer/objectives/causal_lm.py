"""Causal language modelling: predict each token from those before it (Radford 2018, eq. 1)."""

from __future__ import annotations

from typing import Any

from jaxformer.models import Model
from jaxformer.objectives import likelihood

FAMILIES = ("decoder", "memorizing", "retro", "transformer_xl")
LAYOUTS = ("windows", "packed")
PREDICTS_TEXT = True

Config = likelihood.Config


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens, targets and weights, each [B, T]."""
    return likelihood.make(config, model, targets="BT", weights="BT")
