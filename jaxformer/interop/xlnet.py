"""XLNet (Yang 2019): relative attention, whose projections are kept by heads."""

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
from jaxformer.interop.table import Rule, Transform, linear, norm
from jaxformer.models.xlnet import Config

ARCHITECTURES = ("XLNetLMHeadModel",)
# Ours [N, H, D] -> [D, N, H], attention's output projection; ours [D] -> [1, 1, D].
OUTPUT = Transform("OUTPUT", lambda n: ((2,), (0,), (1,)))
MASK = Transform("MASK", lambda n: ((), (), (0,)))


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "bi_data", False, default=False)
    shape: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", width="d_model", num_layers="n_layer", num_heads="n_head",
        feed_forward="d_inner",
    )  # fmt: skip
    return Config(
        **shape,
        attention_type=setting(hf, "attn_type", "bi", "uni", default="bi"),
        memory_length=setting(hf, "mem_len", default=0),
        same_length=bool(setting(hf, "same_length", default=False)),
        clamp_length=max(0, setting(hf, "clamp_len", default=-1)),
        norm_epsilon=float(setting(hf, "layer_norm_eps", default=1e-12)),
        activation=activation(hf, "ff_activation", "gelu"),
        tie_embeddings=bool(setting(hf, "tie_word_embeddings", default=True)),
        dropout=hf.get("dropout", 0.1),
        attention_dropout=hf.get("dropout", 0.1),
        init_std=hf.get("initializer_range", 0.02),
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "xlnet",
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.per_head,
        "d_inner": config.feed_forward_width,
        "ff_activation": published_activation(config.activation),
        "attn_type": config.attention_type,
        "mem_len": config.memory_length or None,
        "same_length": config.same_length,
        "clamp_len": config.clamp_length or -1,
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": config.dropout,
        "initializer_range": config.init_std,
        "pad_token_id": 5 if config.vocab_size > 5 else 0,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at, attention = "transformer.layer.{layer}.", "layers/attention/"
    feed = "layers/feed_forward/"
    rules = [
        Rule("transformer.word_embedding.weight", "embed/tokens"),
        Rule("transformer.mask_emb", "embed/mask", MASK),
        Rule(at + "rel_attn.o", attention + "out", OUTPUT),
        Rule(at + "rel_attn.seg_embed", attention + "segment_bias"),
        *norm(at + "rel_attn.layer_norm", "layers/attention_norm"),
        *linear(at + "ff.layer_1", feed + "in", feed + "in_bias"),
        *linear(at + "ff.layer_2", feed + "out", feed + "out_bias"),
        *norm(at + "ff.layer_norm", "layers/feed_forward_norm"),
    ]
    for name in ("q", "k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias"):
        rules.append(Rule(f"{at}rel_attn.{name}", attention + name))
    rules.append(Rule("lm_loss.bias", "head/bias"))
    if config.tie_embeddings:
        rules.append(Rule("lm_loss.weight", "embed/tokens", use="read"))
    else:
        rules.append(Rule("lm_loss.weight", "head/table"))
    return tuple(rules)


FAMILY = Family(
    "xlnet", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="transformer.",
)  # fmt: skip
