"""Qwen 2 (Yang 2024): Llama with biases of q, k and v. Qwen 3 (2025): normed queries and keys."""

from __future__ import annotations

import functools
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
from jaxformer.interop.rotary_decoders import (
    read_reach,
    read_shape,
    rules,
    write_reach,
    write_shape,
)  # fmt: skip
from jaxformer.models import decoder

ARCHITECTURES = {
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
}


def read_config(model_type: str, hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json; layers from max_window_layers on see a window."""
    architecture(hf, ARCHITECTURES[model_type])
    setting(hf, "attention_bias", False, default=False)
    shape = read_shape(hf)
    window = setting(hf, "sliding_window", default=4096)
    first = setting(hf, "max_window_layers", default=28)
    slides = bool(setting(hf, "use_sliding_window", default=False)) and bool(window)
    kinds = ["local" if slides and i >= first else "global" for i in range(shape["num_layers"])]
    pattern = read_reach(hf, kinds)
    return decoder.Config(
        **shape,
        **read_rope(hf),
        activation=activation(hf, "hidden_act", "silu"),
        attention_pattern=() if pattern == ("local",) else pattern,
        window=window if pattern else 0,
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
    )


def write_config(model_type: str, config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    kinds = config.layer_kinds
    return {
        **write_shape(config, model_type, ARCHITECTURES[model_type][0]),
        **write_rope(config),
        "hidden_act": published_activation(config.activation),
        "use_sliding_window": "local" in kinds,
        "sliding_window": config.window or None,
        "max_window_layers": kinds.index("local") if "local" in kinds else len(kinds),
        "layer_types": write_reach(config),
    }


def _family(model_type: str) -> Family:
    return Family(
        model_type, decoder.Config, ARCHITECTURES[model_type],
        functools.partial(read_config, model_type), functools.partial(write_config, model_type),
        rules, prefix="model.", ignored=(r".*rotary_emb\.inv_freq",),
    )  # fmt: skip


QWEN2, QWEN3 = _family("qwen2"), _family("qwen3")
