"""Model families. A family is a frozen Config and `make(config) -> Model`: two pure functions."""

from __future__ import annotations

from types import ModuleType

from jaxformer.models import decoder, encoder, encoder_decoder
from jaxformer.models.model import Model, Output, count_parameters

FAMILIES: dict[str, ModuleType] = {
    "decoder": decoder,
    "encoder": encoder,
    "encoder_decoder": encoder_decoder,
}

__all__ = [
    "FAMILIES",
    "Model",
    "Output",
    "count_parameters",
    "decoder",
    "encoder",
    "encoder_decoder",
]
