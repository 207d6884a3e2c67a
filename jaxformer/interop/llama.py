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
    sizes,
)  # fmt: skip
from jaxformer.interop.rope import read_rope, write_rope
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
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
        **sizes(
            hf, vocab_size="vocab_size", num_layers="num_hidden_layers", width="hidden_size",
            num_heads="num_attention_heads", feed_forward="intermediate_size",
            max_length="max_position_embeddings",
        ),
        num_kv_heads=hf.get("num_key_value_heads") or 0,
        head_dim=hf.get("head_dim") or 0,
        norm="rms_norm",
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        positions="rope",
        **read_rope(hf),
        activation=activation(hf, "hidden_act", "silu"),
        gated=True,
        bias=mlp,
        qkv_bias=attention and not mlp,
        attention_out_bias=attention and not mlp,
        tie_embeddings=setting(hf, "tie_word_embeddings", True, False, default=False),
        attention_dropout=hf.get("attention_dropout", 0.0),
        init_std=hf.get("initializer_range", 0.02),
    )  # fmt: skip


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.per_head,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        **write_rope(config),
        "hidden_act": published_activation(config.activation),
        "attention_bias": config.bias or config.qkv_bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules; every matrix is torch's Linear."""
    block, attention, feed = "model.layers.{layer}.", "layers/attention/", "layers/feed_forward/"
    rules = [
        Rule("model.embed_tokens.weight", "embed/tokens"),
        *norm("model.norm", "final_norm", bias=False),
        *norm(f"{block}input_layernorm", "layers/attention_norm", bias=False),
        *norm(f"{block}post_attention_layernorm", "layers/feed_forward_norm", bias=False),
    ]
    for name in "qkv":
        bias = f"{attention}{name}_bias" if config.bias or config.qkv_bias else None
        rules += linear(f"{block}self_attn.{name}_proj", f"{attention}{name}", bias)
    bias = f"{attention}out_bias" if config.bias or config.attention_out_bias else None
    rules += linear(f"{block}self_attn.o_proj", f"{attention}out", bias, LINEAR_FROM_HEADS)
    for name, leaf in (("gate_proj", "gate"), ("up_proj", "in"), ("down_proj", "out")):
        bias = f"{feed}{leaf}_bias" if config.bias else None
        rules += linear(f"{block}mlp.{name}", f"{feed}{leaf}", bias)
    if config.tie_embeddings:
        return (*rules, Rule("lm_head.weight", "embed/tokens", use="read"))
    return (*rules, Rule("lm_head.weight", "head/table"))


FAMILY = Family(
    "llama", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="model.",
    ignored=(r".*rotary_emb\.inv_freq",),
)  # fmt: skip
