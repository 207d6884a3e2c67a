"""DistilBERT (Sanh 2019): BERT at half the depth, without token types and pooler."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.bert_layers import (
    HEADS,
    published_head,
    task_heads,
    task_keys,
)  # fmt: skip
from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    labels,
    published_activation,
    setting,
    sizes,
)  # fmt: skip
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models import encoder

ARCHITECTURES = tuple(f"DistilBert{name}" for name in HEADS)


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json."""
    cls = architecture(hf, ARCHITECTURES)
    setting(hf, "tie_word_embeddings", True, default=True)
    name = activation(hf, "activation", "gelu")
    shape: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", width="dim", num_layers="n_layers", num_heads="n_heads",
        feed_forward="hidden_dim", max_length="max_position_embeddings",
    )  # fmt: skip
    keys = task_keys(hf, cls.removeprefix("DistilBert"), names, pooler="distilbert.none")
    return encoder.Config(
        **shape, **keys, activation=name, masked_activation=name, pooler_activation="relu"
    )


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = {
        "architectures": ["DistilBert" + published_head(config)],
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": config.width,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "activation": published_activation(config.activation),
        "tie_word_embeddings": True,
    }
    if config.num_classes or config.num_tags:
        keys |= labels(config.num_classes or config.num_tags)
    return keys


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    base, at = "distilbert.embeddings.", "distilbert.transformer.layer.{layer}."
    rules = [
        Rule(base + "word_embeddings.weight", "embed/tokens"),
        Rule(base + "position_embeddings.weight", "embed/positions"),
        *norm(base + "LayerNorm", "embed/norm"),
    ]
    for name in "qkv":
        path = f"layers/attention/{name}"
        rules += linear(f"{at}attention.{name}_lin", path, f"{path}_bias")
    feed = "layers/feed_forward/"
    rules += [
        *linear(
            at + "attention.out_lin",
            "layers/attention/out",
            "layers/attention/out_bias",
            LINEAR_FROM_HEADS,
        ),
        *norm(at + "sa_layer_norm", "layers/attention_norm"),
        *linear(at + "ffn.lin1", feed + "in", feed + "in_bias"),
        *linear(at + "ffn.lin2", feed + "out", feed + "out_bias"),
        *norm(at + "output_layer_norm", "layers/feed_forward_norm"),
        *task_heads(config),
    ]
    if config.masked_head:
        rules += [
            *linear("vocab_transform", "masked_head/kernel", "masked_head/kernel_bias"),
            *norm("vocab_layer_norm", "masked_head/norm"),
            Rule("vocab_projector.bias", "masked_head/bias"),
            Rule("vocab_projector.weight", "embed/tokens", use="read"),
        ]
    if config.num_classes:
        rules += [
            *linear("pre_classifier", "pooler/kernel", "pooler/bias"),
            *linear("classifier", "classifier/kernel", "classifier/bias"),
        ]
    return tuple(rules)


FAMILY = Family(
    "distilbert", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="distilbert.", ignored=(r".*position_ids",),
)  # fmt: skip
