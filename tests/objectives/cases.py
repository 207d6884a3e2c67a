"""One small case of each objective: a loss function, parameters and a batch with padding in it.

Row 2 of every batch is padding only, row 1 is padded.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.models import decoder, electra, encoder, encoder_decoder, xlnet
from jaxformer.objectives import OBJECTIVES

V, B, T, P = 40, 4, 12, 3
MASK, CLS, SEP = 4, 2, 3
KEYS = dict(vocab_size=V, width=16, num_layers=1, num_heads=4, max_length=T, embed_norm=True)
LENGTHS = np.array([T, 7, 0, 10])
INFO = types.SimpleNamespace(
    vocab_size=V, mask_id=MASK, special_ids=(0, 1, CLS, SEP), num_classes=5, start_id=1,
    class_names=tuple("abcde"),
)  # fmt: skip
NUMBERS = types.SimpleNamespace(**{**vars(INFO), "num_classes": 0, "class_names": ()})


class Case(NamedTuple):
    """A loss function and what it is called with."""

    loss_fn: Callable
    params: dict
    batch: dict


def rows(**more) -> dict:
    """Tokens [CLS] a [SEP] b [SEP] of the lengths above, and whatever else."""
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(5, V, (B, T))
    tokens_BT[:, 0], tokens_BT[:, 3] = CLS, SEP
    tokens_BT[np.arange(B), LENGTHS - 1] = SEP
    real_BT = np.arange(T) < LENGTHS[:, None]
    batch = {
        "tokens": np.where(real_BT, tokens_BT, 0), "segment_ids": real_BT,
        "token_types": np.where(real_BT, np.arange(T) > 3, 0), "rows": np.arange(B) + 8,
    }  # fmt: skip
    ints = {name: jnp.array(x, jnp.int32) for name, x in batch.items()}
    return {**ints, **{name: jnp.array(x) for name, x in more.items()}}


def texts() -> dict:
    batch = rows()
    weights = (batch["segment_ids"] != 0) * 1.0
    return {**batch, "targets": jnp.roll(batch["tokens"], -1, axis=1), "weights": weights}


def pairs() -> dict:
    source = rows()
    given = {"source": source["tokens"][:, :9], "source_segment_ids": source["segment_ids"][:, :9]}
    return texts() | given


def permuted() -> dict:
    weights = np.ones((B, P), np.float32) * (LENGTHS > 0)[:, None]
    weights[1, 2] = 0
    batch = rows(
        perm_mask=np.random.default_rng(3).random((B, T, T)) < 0.3, weights=weights,
        target_mapping=np.eye(T, dtype=np.float32)[None, :P].repeat(B, 0),
    )  # fmt: skip
    return {**batch, "targets": batch["tokens"][:, :P]}


def tagged() -> dict:
    tags = np.random.default_rng(1).integers(0, 5, (B, T)).astype(np.int32)
    tags[:, ::4] = -1  # special tokens, later pieces of words
    return rows(tags=tags)


def make(name: str) -> Case:
    """Returns the case of an objective; "classify:values" is its regression, and so on."""
    objective, _, variant = name.partition(":")
    goal = OBJECTIVES[objective]
    info = NUMBERS if variant == "values" else INFO
    config, labels = goal.Config(), np.array([2, 0, -1, 1], np.int32)
    family, make_model, batch = encoder, encoder.make, rows()
    if objective == "causal_lm":
        family, make_model, batch = decoder, decoder.make, texts()
    elif "encoder_decoder" in goal.FAMILIES:
        family, make_model, batch = encoder_decoder, encoder_decoder.make, pairs()
    elif objective == "replaced_token":
        family, make_model = electra, electra.make
    elif objective == "permutation_lm":
        family, make_model, batch = xlnet, xlnet.make, permuted()
    elif objective == "bert_pretraining":
        batch = rows(**{variant: np.array([1, 0, 0, 0], np.int32)})
    elif objective == "tag":
        batch = tagged()
    elif objective == "extractive_qa":
        batch = rows(start=np.array([5, 0, 0, 4], np.int32), end=np.array([7, 0, 0, 9], np.int32))
    elif variant == "values":
        batch = rows(labels=np.array([0.5, 4.0, -1.0, 2.5], np.float32))
    elif objective == "classify":
        batch = rows(labels=labels)
    fields = {field.name for field in dataclasses.fields(family.Config)}
    keys = {k: x for k, x in (KEYS | goal.adapt(config, info)).items() if k in fields}
    if family in (encoder, electra):
        keys["num_token_types"] = 2
    model = make_model(family.Config(**keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # No initial values: with those heads see everything nearly alike, and drawing is slow.
    rng = np.random.default_rng(2)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(
            0.3 * rng.normal(size=x.shape) + (path[-1].key == "scale"), jnp.float32
        ),
        shapes,
    )
    return Case(goal.make(config, model, info), params, batch)


SAME = ("span_corruption", "infilling")  # as seq2seq, once the host has made the batch
NAMES = [
    variant
    for name in OBJECTIVES
    if name not in SAME
    for variant in {
        "bert_pretraining": ["bert_pretraining:next_sentence", "bert_pretraining:order"],
        "classify": ["classify", "classify:values"],
    }.get(name, [name])
]
