"""GPT-2 (Radford 2019): GPT2LMHeadModel."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    published_activation,
    setting,
    sizes,
)  # fmt: skip
from jaxformer.interop.table import CONV1D, CONV1D_FROM_HEADS, VECTOR, Rule, linear, norm, part
from jaxformer.models.decoder import Config

ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "scale_attn_weights", True, default=True)
    setting(hf, "scale_attn_by_inverse_layer_idx", False, default=False)
    setting(hf, "add_cross_attention", False, default=False)
    return Config(
        **sizes(
            hf, vocab_size="vocab_size", num_layers="n_layer", width="n_embd", num_heads="n_head",
            max_length="n_positions",
        ),
        feed_forward=hf.get("n_inner") or 0,
        norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
        activation=activation(hf, "activation_function", "gelu_new"),
        tie_embeddings=setting(hf, "tie_word_embeddings", True, False, default=True),
        dropout=hf.get("resid_pdrop", 0.1),
        attention_dropout=hf.get("attn_pdrop", 0.1),
        init_std=hf.get("initializer_range", 0.02),
    )  # fmt: skip


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_head": config.num_heads,
        "n_positions": config.max_length,
        "n_inner": config.feed_forward or None,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": published_activation(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.init_std,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules; Conv1D keeps [inputs, outputs], with q, k and v side by side."""
    block, attention, feed = "transformer.h.{layer}.", "layers/attention/", "layers/feed_forward/"
    rules = [
        Rule("transformer.wte.weight", "embed/tokens"),
        Rule("transformer.wpe.weight", "embed/positions"),
        *norm(f"{block}ln_1", "layers/attention_norm"),
        *norm(f"{block}ln_2", "layers/feed_forward_norm"),
        *norm("transformer.ln_f", "final_norm"),
        *linear(f"{block}attn.c_proj", f"{attention}out", f"{attention}out_bias",
                CONV1D_FROM_HEADS),
        *linear(f"{block}mlp.c_fc", f"{feed}in", f"{feed}in_bias", CONV1D),
        *linear(f"{block}mlp.c_proj", f"{feed}out", f"{feed}out_bias", CONV1D),
    ]  # fmt: skip
    for i, name in enumerate("qkv"):
        rules += [
            Rule(f"{block}attn.c_attn.weight", f"{attention}{name}", part(CONV1D, i, 3, axis=1)),
            Rule(f"{block}attn.c_attn.bias", f"{attention}{name}_bias", part(VECTOR, i, 3)),
        ]
    if config.tie_embeddings:
        return (*rules, Rule("lm_head.weight", "embed/tokens", use="read"))
    return (*rules, Rule("lm_head.weight", "head/table"))


FAMILY = Family(
    "gpt2", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="transformer.",
    # The causal mask, which early checkpoints store.
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)  # fmt: skip
