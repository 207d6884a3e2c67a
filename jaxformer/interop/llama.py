"""Llama 1 to 3 (Touvron 2023; Dubey 2024): LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from jaxformer.errors import UserError
from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    published_activation,
    setting,
)
from jaxformer.interop.rope import read_rope, write_rope
from jaxformer.interop.rotary_decoders import read_shape, rules, write_shape
from jaxformer.models.decoder import Config

ARCHITECTURES = ("LlamaForCausalLM", "LlamaModel")


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "pretraining_tp", 1, default=1)
    attention = setting(hf, "attention_bias", True, False, default=False)
    mlp = setting(hf, "mlp_bias", True, False, default=False)
    if mlp and not attention:
        raise UserError(
            "config.json: mlp_bias is true and attention_bias false; supported: both, none, or "
            "attention_bias alone"
        )
    return Config(
        **(read_shape(hf) | {"bias": mlp}),
        **read_rope(hf),
        activation=activation(hf, "hidden_act", "silu"),
        qkv_bias=attention and not mlp,
        attention_out_bias=attention and not mlp,
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **write_shape(config, "llama", ARCHITECTURES[0]),
        **write_rope(config),
        "hidden_act": published_activation(config.activation),
        "attention_bias": config.bias or config.qkv_bias,
        "mlp_bias": config.bias,
    }


FAMILY = Family(
    "llama", Config, ARCHITECTURES, read_config, write_config, rules,
    prefix="model.",
    ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
