"""ELECTRA (Clark 2020): the generator's masked head, or the discriminator's on every token."""

from __future__ import annotations

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
from jaxformer.interop.table import Rule, linear, norm
from jaxformer.models import encoder

ARCHITECTURES = ("ElectraForPreTraining", *(f"Electra{name}" for name in HEADS))


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json."""
    cls = architecture(hf, ARCHITECTURES)
    setting(hf, "is_decoder", False, default=False)
    shape = read_shape({"type_vocab_size": 2, **hf})
    E = setting(hf, "embedding_size", default=128)
    keys = task_keys(hf, cls.removeprefix("Electra"), names, pooler="electra.none")
    if cls == "ElectraForPreTraining":
        keys["discriminator_head"] = True
    return encoder.Config(
        **shape,
        **keys,
        embedding_size=0 if shape["width"] == E else E,
        pooler_activation="gelu",
        tie_embeddings=bool(setting(hf, "tie_word_embeddings", default=True)),
    )


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    keys = write_shape(config, "electra", "Electra")
    if config.discriminator_head:
        keys["architectures"] = ["ElectraForPreTraining"]
    return keys | {
        "embedding_size": config.embedding_size or config.width,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [*layers(config, "electra."), *task_heads(config)]
    if config.embedding_size:
        rules += linear("electra.embeddings_project", "embed/projection", "embed/projection_bias")
    if config.masked_head:
        rules += [
            *linear("generator_predictions.dense", "masked_head/kernel", "masked_head/kernel_bias"),
            *norm("generator_predictions.LayerNorm", "masked_head/norm"),
            Rule("generator_lm_head.bias", "masked_head/bias"),
        ]
        if config.tie_embeddings:
            rules.append(Rule("generator_lm_head.weight", "embed/tokens", use="read"))
        else:
            rules.append(Rule("generator_lm_head.weight", "head/table"))
    if config.discriminator_head:
        at = "discriminator_predictions."
        rules += [
            *linear(at + "dense", "discriminator_dense/kernel", "discriminator_dense/bias"),
            *linear(at + "dense_prediction", "discriminator/kernel", "discriminator/bias"),
        ]
    if config.num_classes:
        rules += [
            *linear("classifier.dense", "pooler/kernel", "pooler/bias"),
            *linear("classifier.out_proj", "classifier/kernel", "classifier/bias"),
        ]
    return tuple(rules)


FAMILY = Family(
    "electra", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="electra.", ignored=(r".*position_ids", r".*token_type_ids"),
)  # fmt: skip
