"""Permutation language modelling: each predicted token sees those before it in a random order.

The order is drawn on the host and comes as masks (Yang 2019, section 2.2; only the last tokens of
the order are predicted, section 2.3). B batch, T time, P predicted tokens a row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives import likelihood

FAMILIES = ("xlnet",)
LAYOUTS = ("windows", "padded")
PREDICTS_TEXT = True


@dataclasses.dataclass(frozen=True)
class Config(likelihood.Config):
    """share: one of so many tokens is predicted (K in the paper); max_span: they come in spans of 1
    to so many tokens. The rest: see likelihood.Config."""

    share: float = 6.0
    max_span: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.share <= 1:
            raise UserError(f"objective.share={self.share} must be above 1; XLNet's is 6")
        if self.max_span < 1:
            raise UserError(f"objective.max_span={self.max_span} must be at least 1; XLNet's is 5")


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {}


def host_transform(config: Config) -> tuple[str, dict[str, Any]]:
    """Returns the kind of data.corruption that makes the batches, and its options."""
    return "permutation", {"share": config.share, "max_span": config.max_span}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function.

    The batch holds tokens [B, T], perm_mask [B, T, T] (True: the row may not attend to the column),
    target_mapping [B, P, T] (one-hot), targets and weights [B, P].
    """
    return likelihood.make(
        config, model, perm_mask="BTT", target_mapping="BPT", targets="BP", weights="BP"
    )
