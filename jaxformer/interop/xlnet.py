"""XLNet (Yang 2019): relative attention, whose projections are kept by heads."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    labels,
    num_labels,
    published_activation,
    setting,
    sizes,
)  # fmt: skip
from jaxformer.interop.table import Rule, Transform, linear, norm
from jaxformer.models.xlnet import POOLING, Config

ARCHITECTURES = (
    "XLNetLMHeadModel", "XLNetModel", "XLNetForSequenceClassification",
    "XLNetForTokenClassification", "XLNetForQuestionAnsweringSimple",
)  # fmt: skip
# Ours [N, H, D] -> [D, N, H], attention's output projection; ours [D] -> [1, 1, D].
OUTPUT = Transform("OUTPUT", lambda n: ((2,), (0,), (1,)))
MASK = Transform("MASK", lambda n: ((), (), (0,)))


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json; the heads are those that it names or `names` holds."""
    kind = architecture(hf, ARCHITECTURES).removeprefix("XLNet")
    setting(hf, "bi_data", False, default=False)
    shape: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", width="d_model", num_layers="n_layer", num_heads="n_head",
        feed_forward="d_inner",
    )  # fmt: skip
    classes = kind == "ForSequenceClassification" or "logits_proj.weight" in names
    tags = kind == "ForTokenClassification" or "classifier.weight" in names
    return Config(
        **shape,
        masked_head=kind == "LMHeadModel" or "lm_loss.bias" in names,
        num_classes=num_labels(hf) if classes else 0,
        pooling=_pooling(hf) if classes else "last",
        num_tags=num_labels(hf) if tags else 0,
        span_head=kind == "ForQuestionAnsweringSimple" or "qa_outputs.weight" in names,
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


def _pooling(hf: HF) -> str:
    """Returns which token a classifier reads, always through a tanh layer."""
    for key, value in {"summary_use_proj": True, "summary_activation": "tanh"}.items():
        setting({key: value, **hf}, key, value)  # null there is not the default: it is none
    setting(hf, "summary_proj_to_labels", False, default=False)
    return setting(hf, "summary_type", *POOLING, default="last")


def _architecture(config: Config) -> str:
    """Returns the published class that has this config's heads; one for a task comes first."""
    if config.num_classes:
        return "XLNetForSequenceClassification"
    if config.num_tags:
        return "XLNetForTokenClassification"
    if config.span_head:
        return "XLNetForQuestionAnsweringSimple"
    return "XLNetLMHeadModel" if config.masked_head else "XLNetModel"


def reduce(config: Config) -> Config:
    """Returns the config with the heads of one published class."""
    kind = _architecture(config)
    return dataclasses.replace(
        config,
        masked_head=kind == "XLNetLMHeadModel",
        num_tags=config.num_tags if kind == "XLNetForTokenClassification" else 0,
        span_head=kind == "XLNetForQuestionAnsweringSimple",
        pooling=config.pooling if config.num_classes else "last",
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = {
        "architectures": [_architecture(config)],
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
    if config.num_classes:
        keys["summary_type"] = config.pooling
    if config.num_classes or config.num_tags:
        keys |= labels(config.num_classes or config.num_tags)
    return keys


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters; XLNetModel alone has names without "transformer."."""
    base = "" if _architecture(config) == "XLNetModel" else "transformer."
    at, attention = base + "layer.{layer}.", "layers/attention/"
    feed = "layers/feed_forward/"
    rules = [
        Rule(f"{base}word_embedding.weight", "embed/tokens"),
        Rule(f"{base}mask_emb", "embed/mask", MASK),
        Rule(at + "rel_attn.o", attention + "out", OUTPUT),
        Rule(at + "rel_attn.seg_embed", attention + "segment_bias"),
        *norm(at + "rel_attn.layer_norm", "layers/attention_norm"),
        *linear(at + "ff.layer_1", feed + "in", feed + "in_bias"),
        *linear(at + "ff.layer_2", feed + "out", feed + "out_bias"),
        *norm(at + "ff.layer_norm", "layers/feed_forward_norm"),
    ]
    for name in ("q", "k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias"):
        rules.append(Rule(f"{at}rel_attn.{name}", attention + name))
    for name, path, present in (
        ("sequence_summary.summary", "pooler", config.num_classes),
        ("logits_proj", "classifier", config.num_classes),
        ("classifier", "tagger", config.num_tags),
        ("qa_outputs", "span", config.span_head),
    ):
        if present:
            rules += linear(name, f"{path}/kernel", f"{path}/bias")
    if not config.masked_head:
        return tuple(rules)
    rules.append(Rule("lm_loss.bias", "head/bias"))
    if config.tie_embeddings:
        rules.append(Rule("lm_loss.weight", "embed/tokens", use="read"))
    else:
        rules.append(Rule("lm_loss.weight", "head/table"))
    return tuple(rules)


FAMILY = Family(
    "xlnet", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="transformer.", reduce=reduce,
)  # fmt: skip
