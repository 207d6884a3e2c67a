"""What BERT's kin share: the embedding's and the layers' names, and the heads of tasks."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import (
    HF,
    activation,
    labels,
    num_labels,
    published_activation,
    setting,
    sizes,
)  # fmt: skip
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models import encoder

# What comes after the family's name in the name of a published class.
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
         "ForQuestionAnswering")  # fmt: skip


def read_shape(hf: HF) -> dict[str, Any]:
    """Returns our keys for the sizes of config.json and for what the kin agree on."""
    name = activation(hf, "hidden_act", "gelu")
    setting(hf, "position_embedding_type", "absolute", default="absolute")
    return {
        **sizes(
            hf,
            vocab_size="vocab_size",
            num_layers="num_hidden_layers",
            width="hidden_size",
            num_heads="num_attention_heads",
            feed_forward="intermediate_size",
            max_length="max_position_embeddings",
        ),
        "num_token_types": setting(hf, "type_vocab_size", default=0),
        "norm_epsilon": float(setting(hf, "layer_norm_eps", default=1e-12)),
        "activation": name,
        "dropout": hf.get("hidden_dropout_prob", 0.1),
        "attention_dropout": hf.get("attention_probs_dropout_prob", 0.1),
        "init_std": hf.get("initializer_range", 0.02),
    }


def write_shape(config: encoder.Config, model_type: str, prefix: str) -> dict[str, Any]:
    """Returns config.json's keys for what `read_shape` and `task_keys` read."""
    keys = {
        "architectures": [prefix + published_head(config)],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": published_activation(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
    }
    if config.num_classes or config.num_tags:
        keys |= labels(config.num_classes or config.num_tags)
    return keys


def task_keys(hf: HF, head: str, names: frozenset[str], pooler: str) -> dict[str, Any]:
    """Returns our keys of the heads that a published class has.

    Args:
      hf: config.json.
      head: the class's name without the family's, one of HEADS, or "" where none is named.
      names: the tensors that there are.
      pooler: the name of the pooler's weight, which "Model" may have or not.
    """
    keys: dict[str, Any] = {"masked_head": head == "ForMaskedLM"}
    if head == "ForSequenceClassification":
        keys["num_classes"] = num_labels(hf)
    elif head == "ForTokenClassification":
        keys["num_tags"] = num_labels(hf)
    elif head == "ForQuestionAnswering":
        keys["span_head"] = True
    bare = pooler.split(".", 1)[1]
    keys["pooler"] = head in ("Model", "") and bool({pooler, bare} & names)
    return keys


def published_head(config: encoder.Config) -> str:
    """Returns the end of the published class's name that has our heads."""
    if config.masked_head:
        return "ForMaskedLM"
    if config.num_classes:
        return "ForSequenceClassification"
    if config.num_tags:
        return "ForTokenClassification"
    return "ForQuestionAnswering" if config.span_head else "Model"


def task_heads(config: encoder.Config) -> list[Rule]:
    """Returns the rules of the heads that read each token."""
    rules = []
    if config.num_tags:
        rules += linear("classifier", "tagger/kernel", "tagger/bias")
    if config.span_head:
        rules += linear("qa_outputs", "span/kernel", "span/bias")
    return rules


def embeddings(config: encoder.Config, base: str) -> list[Rule]:
    """Returns the rules of the embedding; `base` is the base model's prefix, with its dot."""
    at = f"{base}embeddings."
    rules = [
        Rule(at + "word_embeddings.weight", "embed/tokens"),
        Rule(at + "position_embeddings.weight", "embed/positions"),
        *norm(at + "LayerNorm", "embed/norm"),
    ]
    if config.num_token_types:
        rules.append(Rule(at + "token_type_embeddings.weight", "embed/token_types"))
    return rules


def layers(config: encoder.Config, base: str) -> list[Rule]:
    """Returns the rules of the embedding and of all layers, by BERT's names."""
    rules, at = embeddings(config, base), f"{base}encoder.layer.{{layer}}."
    attention, feed = "layers/attention/", "layers/feed_forward/"
    for ours, name in {"q": "query", "k": "key", "v": "value"}.items():
        rules += linear(
            f"{at}attention.self.{name}", f"{attention}{ours}", f"{attention}{ours}_bias"
        )
    out = f"{at}attention.output."
    return [
        *rules,
        *linear(f"{out}dense", f"{attention}out", f"{attention}out_bias", LINEAR_FROM_HEADS),
        *norm(f"{out}LayerNorm", "layers/attention_norm"),
        *linear(f"{at}intermediate.dense", f"{feed}in", f"{feed}in_bias"),
        *linear(f"{at}output.dense", f"{feed}out", f"{feed}out_bias"),
        *norm(f"{at}output.LayerNorm", "layers/feed_forward_norm"),
    ]
