"""BERT (Devlin 2019) with its pre-training heads, or one for a task."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop.bert_layers import layers, read_shape, write_shape
from jaxformer.interop.family import HF, Family, activation, architecture, num_labels, setting
from jaxformer.interop.table import PLAIN, Rule, linear, norm
from jaxformer.models.encoder import Config

ARCHITECTURES = (
    "BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering",
)  # fmt: skip


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json; the heads are those that it names or `names` holds."""
    kind = architecture(hf, ARCHITECTURES).removeprefix("BertFor")
    setting(hf, "is_decoder", False, default=False)
    setting(hf, "add_cross_attention", False, default=False)
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    classifier = "classifier.weight" in names
    tags = kind == "TokenClassification" or (classifier and not kind and not pooler)
    classes = kind == "SequenceClassification" or (classifier and not tags)
    return Config(
        **read_shape(hf),
        masked_activation=activation(hf, "hidden_act", "gelu"),
        tie_embeddings=setting(hf, "tie_word_embeddings", True, False, default=True),
        masked_head=(
            kind in ("PreTraining", "MaskedLM") or "cls.predictions.bias" in names
        ),
        pooler=pooler and not classes,
        next_sentence_head=(
            kind in ("PreTraining", "NextSentencePrediction")
            or "cls.seq_relationship.weight" in names
        ),
        num_classes=num_labels(hf) if classes else 0,
        num_tags=num_labels(hf) if tags else 0,
        span_head=kind == "QuestionAnswering" or "qa_outputs.weight" in names,
    )  # fmt: skip


def _architecture(config: Config) -> str:
    """Returns the published class that has this config's heads."""
    if config.num_classes:
        return "BertForSequenceClassification"
    if config.num_tags:
        return "BertForTokenClassification"
    if config.span_head:
        return "BertForQuestionAnswering"
    if config.masked_head:
        return "BertForPreTraining" if config.next_sentence_head else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if config.next_sentence_head else "BertModel"


def reduce(config: Config) -> Config:
    """Returns the config with the heads of one published class; heads of a task come first."""
    kind = _architecture(config)
    return dataclasses.replace(
        config,
        masked_head=kind in ("BertForMaskedLM", "BertForPreTraining"),
        next_sentence_head=kind in ("BertForPreTraining", "BertForNextSentencePrediction"),
        num_tags=config.num_tags if kind == "BertForTokenClassification" else 0,
        span_head=kind == "BertForQuestionAnswering",
        pooler=kind in ("BertForPreTraining", "BertForNextSentencePrediction")
        or (kind == "BertModel" and config.pooler),
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **write_shape(config, "bert", "Bert"),
        "architectures": [_architecture(config)],
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules; BertModel alone has names without "bert."."""
    base = "" if _architecture(config) == "BertModel" else "bert."
    rules = layers(config, base)
    for published, path, present in (
        (f"{base}pooler.dense", "pooler", config.has_pooler),
        ("cls.seq_relationship", "next_sentence", config.next_sentence_head),
        ("classifier", "classifier", config.num_classes),
        ("classifier", "tagger", config.num_tags),
        ("qa_outputs", "span", config.span_head),
    ):
        if present:
            rules += linear(published, f"{path}/kernel", f"{path}/bias")
    return (*rules, *(masked_head(config) if config.masked_head else ()))


def masked_head(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of the head for masked tokens."""
    head, ours = "cls.predictions.", "masked_head/"
    transform = (
        *linear(f"{head}transform.dense", f"{ours}kernel", f"{ours}kernel_bias"),
        *norm(f"{head}transform.LayerNorm", f"{ours}norm"),
    )
    if config.tie_embeddings:
        return (
            *transform,
            Rule(f"{head}bias", f"{ours}bias"),
            Rule(f"{head}decoder.bias", f"{ours}bias", use="read"),
            Rule(f"{head}decoder.weight", "embed/tokens", use="read"),
        )
    return (  # the decoder's own bias counts, and the other is in the file all the same
        *transform,
        *linear(f"{head}decoder", "head/table", f"{ours}bias", PLAIN),
        Rule(f"{head}bias", f"{ours}bias", use="write"),
    )


FAMILY = Family(
    "bert", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="bert.",
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(r"(bert\.)?embeddings\.position_ids",),
    reduce=reduce,
)  # fmt: skip
