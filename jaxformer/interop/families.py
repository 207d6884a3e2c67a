"""The families of checkpoints that are read and written, by config.json's model_type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError, suggest
from jaxformer.interop import (
    albert,
    bart,
    bert,
    big_bird,
    distilbert,
    electra,
    gemma,
    gpt1,
    gpt2,
    llama,
    longformer,
    marian,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    qwen,
    recurrent,
    roberta,
    t5,
    transformer_xl,
    xlnet,
)  # fmt: skip
from jaxformer.interop.family import Family
from jaxformer.modules import variants
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.recurrent_config import RecurrentConfig
from jaxformer.modules.relative import RelativeConfig

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        distilbert.FAMILY, bert.FAMILY, roberta.FAMILY, albert.FAMILY, electra.FAMILY,
        longformer.FAMILY, big_bird.FAMILY,
        modernbert.FAMILY, gpt1.FAMILY, gpt2.FAMILY, llama.FAMILY, mistral.FAMILY, qwen.QWEN2,
        qwen.QWEN3, gemma.GEMMA2, gemma.GEMMA3, olmo2.FAMILY, mixtral.FAMILY, marian.FAMILY,
        bart.FAMILY, t5.FAMILY, xlnet.FAMILY, transformer_xl.FAMILY, recurrent.FAMILY,
    )
}  # fmt: skip

# Our keys that say how a model is trained or run, not what it computes.
RUNNING = ("dropout", "attention_dropout", "compute_dtype", "attention_backend", "unroll", "remat",
           "init", "init_std", "zero_init_output", "init_range", "forget_bias",
           "segment_length")  # fmt: skip


def of_checkpoint(hf: Mapping[str, Any]) -> Family:
    """Returns the family that a config.json names.

    Raises:
      UserError: it names none, or one that is not here.
    """
    name = hf.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"config.json: model_type is {name!r}{suggest(str(name), FAMILIES)}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def of_model(config: Any, model_type: str | None = None) -> Family:
    """Returns the family whose published models compute what a model of ours computes.

    That is shown, not assumed: the config.json that a family would write must be read back as the
    same config (but for the heads that its `reduce` leaves out, and for RUNNING).

    Args:
      config: a model's.
      model_type: the family to take; None takes the first that fits.

    Raises:
      UserError: none fits; it says what the nearest one lacks.
    """
    if model_type is not None and model_type not in FAMILIES:
        raise UserError(
            f"model_type {model_type!r} is not one of {', '.join(FAMILIES)}"
            f"{suggest(model_type, FAMILIES)}"
        )
    wanted = [FAMILIES[model_type]] if model_type else list(FAMILIES.values())
    misfits: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for family in wanted:
        if type(config) is not family.config_class:
            continue
        try:
            differences = _differences(family, family.reduce(config))
        except UserError as problem:  # what it would write, it would not read
            refused[family.model_type] = [str(problem).removeprefix("config.json: ")]
            continue
        if not differences:
            return family
        misfits[family.model_type] = differences
    misfits = misfits or refused
    if not misfits:
        kind = type(config).__module__.rpartition(".")[2]
        raise UserError(
            f"no family of {', '.join(f.model_type for f in wanted)} holds an {kind}; a model of "
            "this kind cannot be written for transformers"
        )
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    raise UserError(
        f"no published family computes what this model computes; the nearest, {nearest}, cannot "
        f"have {', '.join(misfits[nearest])}"
    )


def _differences(family: Family, config: Any) -> list[str]:
    """Returns each key that the family does not give back, as "key=value"."""
    names = frozenset(rule.name for rule in family.table(config) if rule.use != "read")
    given_back = _usual(family.read_config(family.write_config(config), names))
    asked = _usual(config)
    return [f"{key}={asked[key]!r}" for key in asked if asked[key] != given_back[key]]


def _usual(config: Any) -> dict[str, Any]:
    """Returns a config's keys with "the usual value" written out, without RUNNING."""
    keys = {k: v for k, v in dataclasses.asdict(config).items() if k not in RUNNING}
    if isinstance(config, RelativeConfig):
        del keys["max_length"]  # no parameter depends on it, and no published key tells it
        keys |= {"head_dim": config.per_head, "feed_forward": config.feed_forward_width}
        if "embedding_size" in keys:
            keys["embedding_size"] = keys["embedding_size"] or config.width
    if isinstance(config, RecurrentConfig):
        keys |= {
            "embedding_size": config.embedding_width,
            "attention_width": (config.attention == "bahdanau")
            and (config.attention_width or config.width),
            "source_vocab_size": (not config.share_embeddings)
            and (config.source_vocab_size or config.vocab_size),
        }
    if not isinstance(config, TransformerConfig):
        return keys
    choice = variants.parse(config.attention)
    if choice is not None:
        keys["attention"] = choice.function()
    keys |= {"num_kv_heads": config.kv_heads, "head_dim": config.per_head,
             "feed_forward": config.feed_forward_width,
             "attention_pattern": config.layer_kinds}  # fmt: skip
    if config.norm != "layer_norm":  # no other has a bias
        keys["norm_bias"] = True
    if not getattr(config, "has_pooler", False):
        keys["pooler_activation"] = "tanh"
    if not config.rope_scaling:
        keys |= {"rope_original_length": 0, "rope_frequency_factors": ()}
    elif not config.rope_original_length:
        keys["rope_original_length"] = config.max_length
    if not config.positions.startswith("rope"):
        keys |= {"rope_base": 0.0, "rope_local_base": 0.0, "rope_scaling": ""}
    return keys
