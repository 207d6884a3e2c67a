"""Named sizes: as many parameters as published, and as the class that transformers builds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from jaxformer import models
from jaxformer.interop import families
from jaxformer.models import FAMILIES

# What a size leaves to the tokenizer.
KEYS: dict[str, dict[str, int]] = {
    "transformer_base": {"vocab_size": 37000}, "transformer_big": {"vocab_size": 37000},
    "opus_mt": {"vocab_size": 58101, "start_id": 58100}, "small": {"vocab_size": 8000},
}  # fmt: skip
# Millions of parameters, as papers, model cards and the checkpoints' own files tell.
PUBLISHED = {
    "gpt1": 116.5, "gpt2": 124.4, "gpt2_medium": 354.8, "gpt2_large": 774.0, "gpt2_xl": 1557.6,
    "llama2_7b": 6738.4, "llama2_13b": 13015.9, "llama2_70b": 68976.6,
    "llama3_8b": 8030.3, "llama3_70b": 70553.7, "llama3_1_8b": 8030.3, "llama3_1_70b": 70553.7,
    "llama3_2_1b": 1235.8, "llama3_2_3b": 3212.7,
    "mistral_7b": 7241.7, "mistral_7b_v0_3": 7248.0,
    "mixtral_8x7b": 46702.8, "mixtral_8x22b": 140630.1,
    "qwen2_0_5b": 494.0, "qwen2_1_5b": 1543.7, "qwen2_7b": 7615.6,
    "qwen3_0_6b": 596.0, "qwen3_1_7b": 1720.6, "qwen3_4b": 4022.5, "qwen3_8b": 8190.7,
    "qwen3_14b": 14768.3, "qwen3_32b": 32762.1,
    # Gemma 2's report, table 2, tells those that are not embeddings apart.
    "gemma2_2b": 2024.517888 + 256 * 2.304, "gemma2_9b": 8324.201984 + 256 * 3.584,
    "gemma2_27b": 26047.480320 + 256 * 4.608, "gemma3_270m": 268.1, "gemma3_1b": 999.9,
    "olmo2_1b": 1484.9, "olmo2_7b": 7298.6, "olmo2_13b": 13716.2, "olmo2_32b": 32234.3,
    "bert_base": 110, "bert_large": 336, "roberta_base": 124.7, "roberta_large": 355.4,
    "albert_base": 11.81, "albert_large": 17.85, "albert_xlarge": 59.02, "albert_xxlarge": 223.2,
    "distilbert_base": 67.0, "modernbert_base": 149.7, "modernbert_large": 395.9,
    "bart_base": 139.4, "bart_large": 406.3,
    "t5_small": 60.5, "t5_base": 222.9, "t5_large": 737.7, "t5_3b": 2851.6, "t5_11b": 11307.3,
    "t5_v1_1_small": 77.0, "t5_v1_1_base": 247.6, "t5_v1_1_large": 783.2,
    "t5_v1_1_xl": 2849.8, "t5_v1_1_xxl": 11135.3,
    "transformer_base": 65, "transformer_big": 213, "opus_mt": 73.9,
    "xlnet_base": 116.8, "xlnet_large": 360.3,
}  # fmt: skip
ALL = {name: (family, keys) for family, module in FAMILIES.items()
       for name, keys in module.SIZES.items()}  # fmt: skip
# Of these transformers has no class.
ALONE = {
    "transformer_base",
    "transformer_big",
    "luong2015",
    "bahdanau2015",
    "small",
    "wt103_base",
    "wt103_large",
    "wu2022",
    "retro_172m",
    "retro_425m",
    "retro_1_5b",
    "retro_7_5b",
}


def make(name: str) -> tuple[Any, int]:
    """Returns a size's config and its number of parameters; none of them is made."""
    family, keys = ALL[name]
    config = FAMILIES[family].Config(**{**keys, **KEYS.get(name, {})})
    shapes = jax.eval_shape(models.make(config).init, jax.random.key(0))
    return config, models.count_parameters(shapes)


def test_every_family_has_sizes_and_no_two_share_a_name():
    assert all(module.SIZES for module in FAMILIES.values())
    assert len(ALL) == sum(len(module.SIZES) for module in FAMILIES.values())
    assert set(PUBLISHED) <= set(ALL)


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name):
    _, count = make(name)
    rounded = 0.04 if float(PUBLISHED[name]).is_integer() else 0.001  # "65M" are 63.1
    assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=rounded)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALL.keys() - ALONE))
def test_transformers_builds_the_same(name):
    """From the config.json that is written for it, on a device that holds nothing."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, count = make(name)
    if ALL[name][0] == "electra":  # a pair; its half that one keeps is published
        from jaxformer.models import electra

        config = electra.discriminator_config(config)
        shapes = jax.eval_shape(models.make(config).init, jax.random.key(0))
        count = models.count_parameters(shapes)
    family = families.of_model(config)
    assert family.reduce(config) == config or name.startswith("bert")
    written = family.write_config(config)
    kind = transformers.AutoConfig.for_model(**written)
    with torch.device("meta"):
        theirs = getattr(transformers, written["architectures"][0])(kind)
    names = set(theirs.state_dict())
    there = sum(x.numel() for x in theirs.parameters() if x.requires_grad)  # sines are frozen
    if getattr(config, "head_bias", False):  # a buffer there
        there += config.vocab_size
    if name.startswith("t5") and config.tie_embeddings:  # which is always tied there
        names.discard("lm_head.weight")
    elif name.startswith("t5"):
        there += config.vocab_size * config.width
    unused = 0 if getattr(config, "first_attention_norm", True) else config.width
    assert count - unused == there
    again = family.read_config(written, frozenset(names))
    running = {key: getattr(config, key) for key in families.RUNNING if hasattr(config, key)}
    assert families._usual(dataclasses.replace(again, **running)) == families._usual(config)
