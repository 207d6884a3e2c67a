"""Gemma 2 (Gemma Team 2024) and Gemma 3 (2025): norms around each sublayer, local layers between.

Norms multiply by 1 + weight, embeddings by sqrt(D), and queries by a scale of their own. Gemma 2
caps logits; Gemma 3 norms queries and keys, and its local layers have a RoPE base of their own.
"""

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
from jaxformer.interop.rope import read_rope
from jaxformer.interop.rotary_decoders import (
    read_reach,
    read_shape,
    rules,
    write_reach,
    write_shape,
)  # fmt: skip
from jaxformer.models import decoder

ARCHITECTURES = {
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Model"),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextModel"),
}


def read_config(model_type: str, hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES[model_type])
    setting(hf, "attention_bias", False, default=False)
    setting(hf, "use_bidirectional_attention", False, default=False)
    shape = read_shape({"tie_word_embeddings": True, "head_dim": 256, **hf})
    newer = model_type == "gemma3_text"
    every = setting(hf, "sliding_window_pattern", default=6) if newer else 2
    kinds = ["global" if (i + 1) % every == 0 else "local" for i in range(shape["num_layers"])]
    rope, local_base = _read_ropes(hf) if newer else (read_rope(hf), 0.0)
    pattern = read_reach(hf, kinds)
    return decoder.Config(
        **(shape | {"norm": "rms_norm_plus_one"}),
        **rope,
        norm_position="sandwich",
        activation=activation(hf, "hidden_activation", "gelu_pytorch_tanh"),
        embed_scale=True,
        attention_scale=float(setting(hf, "query_pre_attn_scalar", default=256)) ** -0.5,
        attention_soft_cap=_cap(hf, "attn_logit_softcapping", 0.0 if newer else 50.0),
        logit_soft_cap=_cap(hf, "final_logit_softcapping", 0.0 if newer else 30.0),
        attention_pattern=() if pattern == ("local",) else pattern,
        window=setting(hf, "sliding_window", default=4096) if pattern else 0,
        qk_norm=newer,
        rope_local_base=local_base,
    )


def _cap(hf: HF, key: str, default: float) -> float:
    """Returns a soft cap: 0 where config.json says null, the family's where it is silent."""
    return float((hf[key] or 0.0) if key in hf else default)


def _read_ropes(hf: HF) -> tuple[dict[str, Any], float]:
    """Returns the keys of global layers' RoPE and the base of local ones, old form or new."""
    nested = hf.get("rope_parameters") or {}
    if "full_attention" in nested:
        local = nested["sliding_attention"]
        setting(local, "rope_type", "default", default="default")
        return read_rope({"rope_parameters": nested["full_attention"]}), float(local["rope_theta"])
    base = float(setting(hf, "rope_local_base_freq", default=10000.0))
    return read_rope({"rope_theta": 1e6, **hf}), base


def write_config(model_type: str, config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = {
        **write_shape(config, model_type, ARCHITECTURES[model_type][0]),
        "hidden_activation": published_activation(config.activation),
        "query_pre_attn_scalar": _square(config.attention_scale or config.per_head**-0.5),
        "attn_logit_softcapping": config.attention_soft_cap or None,
        "final_logit_softcapping": config.logit_soft_cap or None,
        "sliding_window": config.window or 4096,
        "layer_types": write_reach(config),
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scaling:
        rope |= {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
    if model_type == "gemma2":
        return keys | {"rope_parameters": rope}
    local = {"rope_type": "default", "rope_theta": config.rope_local_base}
    return keys | {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}


def _square(scale: float) -> float:
    """Returns the number whose inverse square root is `scale`: whole, where it nearly is."""
    number = scale**-2
    return round(number) if abs(number - round(number)) < 1e-6 * number else number


def _family(model_type: str) -> Family:
    return Family(
        model_type, decoder.Config, ARCHITECTURES[model_type],
        functools.partial(read_config, model_type), functools.partial(write_config, model_type),
        rules, prefix="model.", ignored=(r".*rotary_emb.*\.inv_freq",),
    )  # fmt: skip


GEMMA2, GEMMA3 = _family("gemma2"), _family("gemma3_text")
