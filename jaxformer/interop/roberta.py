"""RoBERTa (Liu 2019): BERT whose positions begin after the padding id, without sentence pairs."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop.bert_layers import (
    HEADS,
    layers,
    read_shape,
    task_heads,
    task_keys,
    write_shape,
)  # fmt: skip
from jaxformer.interop.family import HF, Family, architecture, setting
from jaxformer.interop.table import PLAIN, Rule, linear, norm
from jaxformer.models import encoder

ARCHITECTURES = tuple(f"Roberta{name}" for name in HEADS)


def read_config(hf: HF, names: frozenset[str], prefix: str = "Roberta") -> encoder.Config:
    """Returns our config of a config.json; `prefix` begins the names of its classes."""
    cls = architecture(hf, tuple(prefix + head for head in HEADS))
    setting(hf, "is_decoder", False, default=False)
    offset = setting(hf, "pad_token_id", default=1) + 1
    shape = read_shape({"type_vocab_size": 2, **hf})
    shape["max_length"] -= offset
    tied = bool(setting(hf, "tie_word_embeddings", default=True))
    return encoder.Config(
        **shape,
        **task_keys(
            hf, cls.removeprefix(prefix), names, pooler=f"{prefix.lower()}.pooler.dense.weight"
        ),
        position_offset=offset,
        tie_embeddings=tied,
    )


def write_config(
    config: encoder.Config, model_type: str = "roberta", prefix: str = "Roberta"
) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = write_shape(config, model_type, prefix)
    longest = config.max_length + config.position_offset
    return {
        **keys,
        "max_position_embeddings": longest,
        "pad_token_id": config.position_offset - 1,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: encoder.Config, base: str = "roberta.") -> tuple[Rule, ...]:
    """Returns the rules of all parameters; `base` is the base model's prefix, with its dot."""
    rules = [*layers(config, base), *task_heads(config)]
    if config.masked_head:
        rules += [
            *linear("lm_head.dense", "masked_head/kernel", "masked_head/kernel_bias"),
            *norm("lm_head.layer_norm", "masked_head/norm"),
        ]
        if config.tie_embeddings:
            rules += [
                Rule("lm_head.bias", "masked_head/bias"),
                Rule("lm_head.decoder.bias", "masked_head/bias", use="read"),
                Rule("lm_head.decoder.weight", "embed/tokens", use="read"),
            ]
        else:  # the decoder's own bias counts, and the other is in the file all the same
            rules += [
                *linear("lm_head.decoder", "head/table", "masked_head/bias", PLAIN),
                Rule("lm_head.bias", "masked_head/bias", use="write"),
            ]
    if config.num_classes:
        rules += [
            *linear("classifier.dense", "pooler/kernel", "pooler/bias"),
            *linear("classifier.out_proj", "classifier/kernel", "classifier/bias"),
        ]
    elif config.has_pooler:
        rules += linear(f"{base}pooler.dense", "pooler/kernel", "pooler/bias")
    return tuple(rules)


FAMILY = Family(
    "roberta", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="roberta.", ignored=(r".*position_ids", r".*token_type_ids"),
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    reduce=lambda config: dataclasses.replace(config, num_classes=0) if config.masked_head
    else config,
)  # fmt: skip
