"""ALBERT (Lan 2020): BERT with one layer's parameters for all, and a narrow embedding."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop.bert_layers import (
    embeddings,
    read_shape,
    task_heads,
    task_keys,
    write_shape,
)  # fmt: skip
from jaxformer.interop.family import HF, Family, activation, architecture, setting, sizes
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models import encoder

HEADS = ("ForPreTraining", "Model", "ForMaskedLM", "ForSequenceClassification",
         "ForTokenClassification", "ForQuestionAnswering")  # fmt: skip
ARCHITECTURES = tuple(f"Albert{name}" for name in HEADS)


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json."""
    cls = architecture(hf, ARCHITECTURES)
    setting(hf, "num_hidden_groups", 1, default=1)
    setting(hf, "inner_group_num", 1, default=1)
    setting(hf, "tie_word_embeddings", True, default=True)
    hf = {"hidden_act": "gelu_new", "type_vocab_size": 2, **hf}
    head = cls.removeprefix("Albert")
    keys = task_keys(hf, head, names, pooler="albert.pooler.weight")
    if head == "ForPreTraining":
        keys |= {"masked_head": True, "next_sentence_head": True}
    return encoder.Config(
        **read_shape(hf),
        **sizes({"embedding_size": 128, **hf}, embedding_size="embedding_size"),
        **keys,
        share_layers=True,
        masked_activation=activation(hf, "hidden_act", "gelu_new"),
    )


def reduce(config: encoder.Config) -> encoder.Config:
    """Returns the config with the heads of one published class; one for a task comes first."""
    none = dict(num_classes=0, num_tags=0, span_head=False, masked_head=False, pooler=False,
                next_sentence_head=False)  # fmt: skip
    for name in ("num_classes", "num_tags", "span_head"):
        if value := getattr(config, name):
            return dataclasses.replace(config, **{**none, name: value})
    both = config.masked_head and config.next_sentence_head
    pooler = config.pooler and not config.masked_head
    return dataclasses.replace(config, next_sentence_head=both, pooler=pooler)


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = write_shape(config, "albert", "Albert")
    if config.next_sentence_head:
        keys["architectures"] = ["AlbertForPreTraining"]
    return keys | {"embedding_size": config.embedding_size, "tie_word_embeddings": True}


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    rules = embeddings(config, "albert.")
    rules += linear(
        "albert.encoder.embedding_hidden_mapping_in", "embed/projection", "embed/projection_bias"
    )
    for ours, name in {"q": "query", "k": "key", "v": "value"}.items():
        path = f"layers/attention/{ours}"
        rules += linear(f"{at}attention.{name}", path, f"{path}_bias")
    feed = "layers/feed_forward/"
    rules += [
        *linear(
            at + "attention.dense",
            "layers/attention/out",
            "layers/attention/out_bias",
            LINEAR_FROM_HEADS,
        ),
        *norm(at + "attention.LayerNorm", "layers/attention_norm"),
        *linear(at + "ffn", feed + "in", feed + "in_bias"),
        *linear(at + "ffn_output", feed + "out", feed + "out_bias"),
        *norm(at + "full_layer_layer_norm", "layers/feed_forward_norm"),
        *task_heads(config),
    ]
    if config.masked_head:
        rules += [
            *linear("predictions.dense", "masked_head/kernel", "masked_head/kernel_bias"),
            *norm("predictions.LayerNorm", "masked_head/norm"),
            Rule("predictions.bias", "masked_head/bias"),
            Rule("predictions.decoder.weight", "embed/tokens", use="read"),
            Rule("predictions.decoder.bias", "masked_head/bias", use="read"),
        ]
    if config.has_pooler:
        rules += linear("albert.pooler", "pooler/kernel", "pooler/bias")
    if config.num_classes:
        rules += linear("classifier", "classifier/kernel", "classifier/bias")
    if config.next_sentence_head:
        rules += linear("sop_classifier.classifier", "next_sentence/kernel", "next_sentence/bias")
    return tuple(rules)


FAMILY = Family(
    "albert", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="albert.", ignored=(r".*position_ids", r".*token_type_ids"),
    reduce=reduce,
)  # fmt: skip
