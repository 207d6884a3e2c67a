"""What Llama's kin share: names of tensors, keys of config.json, and patterns of layers.

Mistral, Qwen, Gemma, OLMo and Mixtral are Llama (Touvron 2023) with other norms, reaches and heads.
"""

from __future__ import annotations

from typing import Any

from jaxformer.errors import UserError
from jaxformer.interop.family import HF, setting, sizes
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models import decoder
from jaxformer.modules.config import TransformerConfig

REACH = {"full_attention": "global", "sliding_attention": "local"}
# Ours -> the published name of a layer's norm, by where the norms stand.
NORMS = {
    "pre": {
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    },
    "output": {
        "attention_norm": "post_attention_layernorm",
        "feed_forward_norm": "post_feedforward_layernorm",
    },
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_output_norm": "post_feedforward_layernorm",
    },
}


def read_shape(hf: HF) -> dict[str, Any]:
    """Returns our keys for the sizes of config.json and for what all kin agree on."""
    keys: dict[str, Any] = sizes(
        hf,
        vocab_size="vocab_size",
        num_layers="num_hidden_layers",
        width="hidden_size",
        num_heads="num_attention_heads",
        feed_forward="intermediate_size",
        max_length="max_position_embeddings",
    )
    kv_heads = setting(hf, "num_key_value_heads", default=keys["num_heads"])
    head_dim = setting(hf, "head_dim", default=keys["width"] // keys["num_heads"])
    plain = head_dim * keys["num_heads"] == keys["width"]
    return {
        **keys,
        "num_kv_heads": 0 if kv_heads == keys["num_heads"] else kv_heads,
        "head_dim": 0 if plain else head_dim,
        "norm": "rms_norm",
        "norm_epsilon": float(setting(hf, "rms_norm_eps", default=1e-6)),
        "bias": False,
        "gated": True,
        "positions": "rope",
        "tie_embeddings": bool(setting(hf, "tie_word_embeddings", default=False)),
        "attention_dropout": hf.get("attention_dropout", 0.0),
        "init_std": hf.get("initializer_range", 0.02),
    }


def write_shape(config: decoder.Config, model_type: str, architecture: str) -> dict[str, Any]:
    """Returns config.json's keys for what `read_shape` reads."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.per_head,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def read_reach(hf: HF, kinds: list[str]) -> tuple[str, ...]:
    """Returns our attention_pattern, the shortest that repeats to the layers' kinds.

    Args:
      hf: config.json, whose "layer_types" count before `kinds`.
      kinds: "global" or "local" for each layer, by the family's own rule.
    """
    published = hf.get("layer_types")
    if published:
        unknown = sorted(set(published) - set(REACH))
        if unknown:
            raise UserError(
                f"config.json: layer_types has {unknown[0]!r}; supported: {', '.join(REACH)}"
            )
        kinds = [REACH[kind] for kind in published]
    for period in range(1, len(kinds) + 1):
        if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
            pattern = tuple(kinds[:period])
            return () if pattern == ("global",) else pattern
    return ()


def write_reach(config: TransformerConfig) -> list[str]:
    """Returns config.json's layer_types."""
    published = {ours: name for name, ours in REACH.items()}
    return [published[kind] for kind in config.layer_kinds]


def rules(config: decoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of a decoder with Llama's names."""
    block, attention, feed = "model.layers.{layer}.", "layers/attention/", "layers/feed_forward/"
    found = [
        Rule("model.embed_tokens.weight", "embed/tokens"),
        *norm("model.norm", "final_norm", bias=False),
    ]
    for name in "qkv":
        bias = f"{attention}{name}_bias" if config.bias or config.qkv_bias else None
        found += linear(f"{block}self_attn.{name}_proj", f"{attention}{name}", bias)
    bias = f"{attention}out_bias" if config.bias or config.attention_out_bias else None
    found += linear(f"{block}self_attn.o_proj", f"{attention}out", bias, LINEAR_FROM_HEADS)
    for name in "qk" if config.qk_norm else "":
        found.append(Rule(f"{block}self_attn.{name}_norm.weight", f"{attention}{name}_norm"))
    for path, name in NORMS[config.norm_position].items():
        found += norm(f"{block}{name}", f"layers/{path}", bias=False)
    parts = {} if config.num_experts else {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
    for leaf, name in parts.items():
        bias = f"{feed}{leaf}_bias" if config.bias else None
        found += linear(f"{block}mlp.{name}", f"{feed}{leaf}", bias)
    if config.tie_embeddings:
        return (*found, Rule("lm_head.weight", "embed/tokens", use="read"))
    return (*found, Rule("lm_head.weight", "head/table"))
