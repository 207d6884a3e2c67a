"""Model families. A family is a frozen Config and `make(config) -> Model`: two pure functions."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from jaxformer.models import (
    decoder,
    electra,
    encoder,
    encoder_decoder,
    memorizing,
    recurrent,
    retro,
    transformer_xl,
    xlnet,
)
from jaxformer.models.model import Model, Output, count_parameters

FAMILIES: dict[str, ModuleType] = {
    "decoder": decoder,
    "electra": electra,
    "encoder": encoder,
    "encoder_decoder": encoder_decoder,
    "memorizing": memorizing,
    "recurrent": recurrent,
    "retro": retro,
    "transformer_xl": transformer_xl,
    "xlnet": xlnet,
}


def family_of(config: Any) -> str:
    """Returns the name of the family that a model's config belongs to."""
    return next(name for name, family in FAMILIES.items() if family.Config is type(config))


def make(config: Any) -> Model:
    """Returns the model of a config of any family."""
    return FAMILIES[family_of(config)].make(config)


__all__ = [
    "FAMILIES",
    "Model",
    "Output",
    "count_parameters",
    "decoder",
    "electra",
    "encoder",
    "encoder_decoder",
    "family_of",
    "make",
    "memorizing",
    "recurrent",
    "retro",
    "transformer_xl",
    "xlnet",
]
