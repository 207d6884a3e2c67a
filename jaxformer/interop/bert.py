"""BERT (Devlin 2019) with its pre-training heads, or one for a task."""

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
from jaxformer.interop.table import LINEAR_FROM_HEADS, PLAIN, Rule, linear, norm
from jaxformer.models.encoder import Config

ARCHITECTURES = (
    "BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering",
)  # fmt: skip


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json; the heads are those that it names or `names` holds."""
    kind = architecture(hf, ARCHITECTURES).removeprefix("BertFor")
    setting(hf, "position_embedding_type", "absolute", default="absolute")
    setting(hf, "is_decoder", False, default=False)
    setting(hf, "add_cross_attention", False, default=False)
    activation_name = activation(hf, "hidden_act", "gelu")
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    classifier = "classifier.weight" in names
    tags = kind == "TokenClassification" or (classifier and not kind and not pooler)
    classes = kind == "SequenceClassification" or (classifier and not tags)
    return Config(
        **sizes(
            hf, vocab_size="vocab_size", num_layers="num_hidden_layers", width="hidden_size",
            num_heads="num_attention_heads", feed_forward="intermediate_size",
            max_length="max_position_embeddings", num_token_types="type_vocab_size",
        ),
        norm_epsilon=hf.get("layer_norm_eps", 1e-12),
        activation=activation_name,
        masked_activation=activation_name,
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
        dropout=hf.get("hidden_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
        init_std=hf.get("initializer_range", 0.02),
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
    kind, count = _architecture(config), config.num_classes or config.num_tags
    return {
        "architectures": [kind],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": published_activation(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        **(labels(count) if count else {}),
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules; BertModel alone has names without "bert."."""
    base = "" if _architecture(config) == "BertModel" else "bert."
    embeddings, block = f"{base}embeddings.", f"{base}encoder.layer.{{layer}}."
    attention, feed = "layers/attention/", "layers/feed_forward/"
    out = f"{block}attention.output."
    rules = [
        Rule(f"{embeddings}word_embeddings.weight", "embed/tokens"),
        Rule(f"{embeddings}position_embeddings.weight", "embed/positions"),
        Rule(f"{embeddings}token_type_embeddings.weight", "embed/token_types"),
        *norm(f"{embeddings}LayerNorm", "embed/norm"),
        *linear(f"{out}dense", f"{attention}out", f"{attention}out_bias", LINEAR_FROM_HEADS),
        *norm(f"{out}LayerNorm", "layers/attention_norm"),
        *linear(f"{block}intermediate.dense", f"{feed}in", f"{feed}in_bias"),
        *linear(f"{block}output.dense", f"{feed}out", f"{feed}out_bias"),
        *norm(f"{block}output.LayerNorm", "layers/feed_forward_norm"),
    ]
    for name, leaf in (("query", "q"), ("key", "k"), ("value", "v")):
        path = f"{attention}{leaf}"
        rules += linear(f"{block}attention.self.{name}", path, f"{path}_bias")
    for published, path, present in (
        (f"{base}pooler.dense", "pooler", config.has_pooler),
        ("cls.seq_relationship", "next_sentence", config.next_sentence_head),
        ("classifier", "classifier", config.num_classes),
        ("classifier", "tagger", config.num_tags),
        ("qa_outputs", "span", config.span_head),
    ):
        if present:
            rules += linear(published, f"{path}/kernel", f"{path}/bias")
    return (*rules, *(_masked_head(config) if config.masked_head else ()))


def _masked_head(config: Config) -> tuple[Rule, ...]:
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
