"""Model families. A family is a frozen Config and `make(config) -> Model`: two pure functions."""

from __future__ import annotations

from types import ModuleType

from jaxformer.models import (
    decoder,
    electra,
    encoder,
    encoder_decoder,
    recurrent,
    transformer_xl,
    xlnet,
)
from jaxformer.models.model import Model, Output, count_parameters

FAMILIES: dict[str, ModuleType] = {
    "decoder": decoder,
    "electra": electra,
    "encoder": encoder,
    "encoder_decoder": encoder_decoder,
    "recurrent": recurrent,
    "transformer_xl": transformer_xl,
    "xlnet": xlnet,
}

__all__ = [
    "FAMILIES",
    "Model",
    "Output",
    "count_parameters",
    "decoder",
    "electra",
    "encoder",
    "encoder_decoder",
    "recurrent",
    "transformer_xl",
    "xlnet",
]
