"""Mixtral (Jiang 2024): Mistral with several experts, of which a token uses few."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop import mistral
from jaxformer.interop.family import HF, Family, architecture, sizes
from jaxformer.interop.rotary_decoders import rules
from jaxformer.interop.table import LINEAR, Rule
from jaxformer.models import decoder

ARCHITECTURES = ("MixtralForCausalLM", "MixtralModel")


def read_config(hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    base = mistral.read_config({**hf, "architectures": []}, names)
    experts = sizes(hf, num_experts="num_local_experts", experts_per_token="num_experts_per_tok")
    return dataclasses.replace(base, **experts)


def write_config(config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **mistral.write_config(config),
        "architectures": [ARCHITECTURES[0]],
        "model_type": "mixtral",
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def table(config: decoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at = "model.layers.{layer}.block_sparse_moe."
    expert = at + "experts.{expert}."
    return (
        *rules(config),
        Rule(at + "gate.weight", "layers/experts/router", LINEAR),
        Rule(expert + "w1.weight", "layers/experts/gate", LINEAR),
        Rule(expert + "w3.weight", "layers/experts/in", LINEAR),
        Rule(expert + "w2.weight", "layers/experts/out", LINEAR),
    )


FAMILY = Family(
    "mixtral", decoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
