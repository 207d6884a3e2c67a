"""OLMo 2 (OLMo Team 2025): Llama with norms on outputs, and of queries and keys over all heads."""

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

ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo2Model")


def read_config(hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "attention_bias", False, default=False)
    return decoder.Config(
        **read_shape({"rms_norm_eps": 1e-5, **hf}),
        **read_rope(hf),
        activation=activation(hf, "hidden_act", "silu"),
        norm_position="output",
        qk_norm=True,
        qk_norm_all_heads=True,
    )


def write_config(config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **write_shape(config, "olmo2", ARCHITECTURES[0]),
        **write_rope(config),
        "hidden_act": published_activation(config.activation),
    }


FAMILY = Family(
    "olmo2", decoder.Config, ARCHITECTURES, read_config, write_config, rules,
    prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
