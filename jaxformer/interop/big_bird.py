"""BigBird (Zaheer 2020): BERT with blocks of keys: a window, the first and last, and random ones.

transformers draws the random blocks in training only: in evaluation all are block 0. Ours are the
published plan's; `attention="bigbird(..., random='zero')"` computes what it computes there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.interop import bert
from jaxformer.interop.bert_layers import (
    HEADS,
    layers,
    read_shape,
    task_heads,
    task_keys,
    write_shape,
)  # fmt: skip
from jaxformer.interop.family import HF, Family, architecture, setting
from jaxformer.interop.table import Rule, linear
from jaxformer.models import encoder
from jaxformer.modules import variants

# Its class for questions has a whole layer before the linear head, which ours has not.
ARCHITECTURES = tuple(f"BigBird{name}" for name in HEADS if name != "ForQuestionAnswering")


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json."""
    cls = architecture(hf, ARCHITECTURES)
    setting(hf, "is_decoder", False, default=False)
    setting(hf, "use_bias", True, default=True)
    shape = read_shape({"type_vocab_size": 2, "hidden_act": "gelu_new", **hf})
    attention = "softmax"
    if setting(hf, "attention_type", "block_sparse", "original_full", default="block_sparse") == (
        "block_sparse"
    ):
        block = setting(hf, "block_size", default=64)
        random = setting(hf, "num_random_blocks", default=3)
        attention = f"bigbird(block={block}, num_random={random})"
    keys = task_keys(hf, cls.removeprefix("BigBird"), names, pooler="bert.pooler.weight")
    if not keys.get("num_classes"):
        keys["pooler"] = bool({"bert.pooler.weight", "pooler.weight"} & names)
    return encoder.Config(
        **shape,
        **keys,
        attention=attention,
        masked_activation=shape["activation"],
        pooler_activation=shape["activation"] if keys.get("num_classes") else "tanh",
        embed_scale=bool(setting(hf, "rescale_embeddings", default=False)),
        tie_embeddings=bool(setting(hf, "tie_word_embeddings", default=True)),
    )


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    choice = variants.parse(config.attention)
    blocks: dict[str, Any] = {"attention_type": "original_full"}
    if choice is not None:
        blocks = {"attention_type": "block_sparse", "block_size": choice.get("block"),
                  "num_random_blocks": choice.get("num_random")}  # fmt: skip
    return {
        **write_shape(config, "big_bird", "BigBird"),
        **blocks,
        "rescale_embeddings": config.embed_scale,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [*layers(config, "bert."), *task_heads(config)]
    if config.masked_head:
        rules += bert.masked_head(config)
    if config.num_classes:
        rules += [
            *linear("classifier.dense", "pooler/kernel", "pooler/bias"),
            *linear("classifier.out_proj", "classifier/kernel", "classifier/bias"),
            # Its class has a pooler too, which nobody reads.
            *(rule._replace(use="write") for rule in linear(
                "bert.pooler", "pooler/kernel", "pooler/bias")),
        ]  # fmt: skip
    elif config.has_pooler:
        rules += linear("bert.pooler", "pooler/kernel", "pooler/bias")
    return tuple(rules)


FAMILY = Family(
    "big_bird", encoder.Config, ARCHITECTURES, read_config, write_config, table, prefix="bert.",
    # A classifier's file has a pooler that nobody reads.
    ignored=(r".*position_ids", r"bert\.pooler\..*"),
    reduce=lambda config: dataclasses.replace(config, num_classes=0) if config.masked_head
    else config,
)  # fmt: skip
