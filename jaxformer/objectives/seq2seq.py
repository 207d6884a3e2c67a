"""Sequence to sequence with teacher forcing: each target token from the source and those before it.

Label smoothing is the paper's (Vaswani 2017, section 5.4) and is part of the training loss that is
reported; evaluation reports the plain likelihood. B batch, S source time, T target time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.models import Model
from jaxformer.objectives import likelihood

FAMILIES = ("encoder_decoder", "recurrent")
LAYOUTS = ("seq2seq", "seq2seq_packed")
PREDICTS_TEXT = True


@dataclasses.dataclass(frozen=True)
class Config(likelihood.Config):
    """The keys of likelihood.Config, with the paper's label smoothing."""

    label_smoothing: float = 0.1


def adapt(config: likelihood.Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    # Decoding must begin with the token that the targets begin with.
    return {"start_id": info.start_id} if info.start_id >= 0 else {}


def make(config: likelihood.Config, model: Model, info: Any):
    """Returns the loss function.

    The batch holds source, source_segment_ids [B, S], and tokens (the targets shifted right),
    targets and weights [B, T].
    """
    return likelihood.make(
        config, model, source="BS", source_segment_ids="BS", targets="BT", weights="BT"
    )
