"""Mistral (Jiang 2023): Llama whose layers all see a window of tokens."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    published_activation,
    setting,
)  # fmt: skip
from jaxformer.interop.rope import read_rope, write_rope
from jaxformer.interop.rotary_decoders import read_shape, rules, write_shape
from jaxformer.models import decoder

ARCHITECTURES = ("MistralForCausalLM", "MistralModel")


def read_config(hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    return decoder.Config(
        **read_shape(hf),
        **read_rope(hf),
        activation=activation(hf, "hidden_act", "silu"),
        window=setting(hf, "sliding_window", default=0),
    )


def write_config(config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **write_shape(config, "mistral", ARCHITECTURES[0]),
        **write_rope(config),
        "hidden_act": published_activation(config.activation),
        "sliding_window": config.window or None,
    }


FAMILY = Family(
    "mistral", decoder.Config, ARCHITECTURES, read_config, write_config, rules,
    prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
