"""Traps of BERT and its kin; see traps.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

from tests.parity.traps import (
    SMALL,
    Subject,
    Trap,
    V,
    edit,
    edits,
    fresh_norm,
    hold,
    in_the_tail,
    published,
    shrunk,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # together nearly a minute

D = SMALL["hidden_size"]
TYPES = (np.arange(9) > 4).astype(np.int32) + np.zeros((2, 1), np.int32)


def with_types(model, tokens):
    import torch

    return model(tokens, token_type_ids=torch.tensor(TYPES).long()).logits


def pair(model, tokens):
    import torch

    out = model(tokens, token_type_ids=torch.tensor(TYPES).long())
    return out.seq_relationship_logits


def spans(model, tokens):
    import torch

    out = model(tokens)
    return torch.stack([out.start_logits, out.end_logits], dim=-1)


def ours_pair(model, params, batch):
    pooled = model.pool(params, model.apply(params, batch).hidden_BTD, batch)
    return model.readout(params, pooled, "next_sentence")


def unpooled_pair(model, params, batch):
    return model.readout(params, model.apply(params, batch).hidden_BTD[:, 0], "next_sentence")


def ours_spans(model, params, batch):
    return model.readout(params, model.apply(params, batch).hidden_BTD, "span")


def classes(model, params, batch):
    return model.classify(params, model.apply(params, batch).hidden_BTD, batch)


_DISTIL = dict(vocab_size=V, dim=D, n_layers=2, n_heads=4, hidden_dim=24)
_ROBERTA = dict(SMALL, max_position_embeddings=20, pad_token_id=1, type_vocab_size=1)
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "BERT": lambda: published(
        "BertForMaskedLM", "BertConfig", **SMALL, scale=0.5,
        ask=with_types, batch={"token_types": TYPES},
    ),
    "BERT, GELU": lambda: published(
        "BertForMaskedLM", "BertConfig", **SMALL, scale=0.2,
        prepare=in_the_tail(inner="intermediate.dense", outer="output.dense"),
    ),
    "BERT, GELU in the head": lambda: published(
        "BertForMaskedLM", "BertConfig", **SMALL, scale=0.2,
        prepare=in_the_tail(inner="transform.dense"),
    ),
    "BERT, small variance": lambda: published(
        "BertForMaskedLM", "BertConfig", **SMALL, prepare=shrunk
    ),
    "BERT, pairs": lambda: published(
        "BertForPreTraining", "BertConfig", **SMALL, scale=0.3, ask=pair, read=ours_pair,
        batch={"token_types": TYPES},
    ),
    "BERT, answers": lambda: published(
        "BertForQuestionAnswering", "BertConfig", **SMALL, ask=spans, read=ours_spans
    ),
    "RoBERTa": lambda: published("RobertaForMaskedLM", "RobertaConfig", **_ROBERTA),
    "ALBERT": lambda: published(
        "AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=D, scale=0.5
    ),
    "ALBERT, GELU": lambda: published(
        "AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=D, scale=0.2,
        prepare=in_the_tail(inner="ffn", outer="ffn_output"),
    ),
    "ALBERT, GELU in the head": lambda: published(
        "AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=D, scale=0.2,
        prepare=in_the_tail(inner="predictions.dense"),
    ),
    "ALBERT, small variance": lambda: published(
        "AlbertForMaskedLM", "AlbertConfig", **SMALL, embedding_size=D, prepare=shrunk
    ),
    "DistilBERT": lambda: published("DistilBertForMaskedLM", "DistilBertConfig", **_DISTIL),
    "DistilBERT, classes": lambda: published(
        "DistilBertForSequenceClassification", "DistilBertConfig", **_DISTIL, num_labels=3,
        scale=0.3, read=classes,
    ),
    "DistilBERT, small variance": lambda: published(
        "DistilBertForMaskedLM", "DistilBertConfig", **_DISTIL, prepare=shrunk
    ),
}  # fmt: skip
subject = functools.cache(lambda name: SUBJECTS[name]())


def as_if_fresh(leaf):
    """Layers of which only the first was read: the others are as they began."""
    fresh = 0.02 * np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)
    return np.concatenate([leaf, fresh])


def unshared(params):
    return {**params, "layers": jax.tree.map(as_if_fresh, params["layers"])}


def a_type_table(_):
    return np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)


TRAPS = [
    Trap("BERT", "GELU by tanh in the layers", "BERT, GELU", {"activation": "gelu_tanh"}),
    Trap("BERT", "GELU by tanh in the head", "BERT, GELU in the head",
         {"masked_activation": "gelu_tanh"}),
    Trap("BERT", "epsilon 1e-5", "BERT, small variance", {"norm_epsilon": 1e-5}),
    Trap("BERT", "norms before the sublayers", "BERT", {"norm_position": "pre"},
         fresh_norm("final_norm", D)),
    Trap("BERT", "no norm of the embedding", "BERT", {"embed_norm": False}),
    Trap("BERT", "no bias of the decoder's own", "BERT",
         params=edit("masked_head/bias", np.zeros_like)),
    Trap("BERT", "a decoder that is not tied", "BERT", {"tie_embeddings": False},
         edit("head/table", lambda _: np.random.default_rng(0).normal(size=(V, D)))),
    Trap("BERT", "no transform before the decoder", "BERT",
         params=edits(edit("masked_head/kernel", lambda x: np.eye(D, dtype=x.dtype)),
                      edit("masked_head/kernel_bias", np.zeros_like))),
    Trap("BERT", "every token of type 0", "BERT",
         batch=lambda batch: {"tokens": batch["tokens"]}),
    Trap("BERT", "a pooler without tanh", "BERT, pairs", {"pooler_activation": "identity"}),
    Trap("BERT", "next sentence without the pooler", "BERT, pairs", read=unpooled_pair),
    Trap("BERT", "is another before follows", "BERT, pairs",
         read=lambda *given: ours_pair(*given)[:, ::-1]),
    Trap("BERT", "an answer's end before its start", "BERT, answers",
         read=lambda *given: ours_spans(*given)[..., ::-1]),
    Trap("RoBERTa", "positions from row 0", "RoBERTa",
         {"position_offset": 0, "max_length": 20}),
    Trap("RoBERTa", "positions from row padding_idx", "RoBERTa",
         {"position_offset": 1, "max_length": 19}),
    Trap("ALBERT", "each layer its own parameters", "ALBERT", {"share_layers": False}, unshared),
    Trap("ALBERT", "no projection where E is D", "ALBERT", {"embedding_size": 0}),
    Trap("ALBERT", "exact GELU", "ALBERT, GELU", {"activation": "gelu"}),
    Trap("ALBERT", "exact GELU in the head", "ALBERT, GELU in the head",
         {"masked_activation": "gelu"}),
    Trap("ALBERT", "epsilon 1e-5", "ALBERT, small variance", {"norm_epsilon": 1e-5}),
    Trap("DistilBERT", "token types", "DistilBERT", {"num_token_types": 2},
         edit("embed/token_types", a_type_table)),
    Trap("DistilBERT", "BERT's tanh before the classes", "DistilBERT, classes",
         {"pooler_activation": "tanh"}),
    Trap("DistilBERT", "epsilon 1e-5", "DistilBERT, small variance", {"norm_epsilon": 1e-5}),
]  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.id)
def test_trap(trap):
    hold(trap, subject(trap.subject))


@pytest.mark.parametrize("name", ["RoBERTa", "DistilBERT", "ALBERT"])
def test_no_head_and_no_table_that_the_family_lacks(name):
    """RoBERTa and DistilBERT know no pairs of sentences, nor a pooler beside the masked head."""
    found = subject(name)
    assert not found.config.next_sentence_head and not found.config.has_pooler
    assert ("token_types" in found.params["embed"]) == (name != "DistilBERT")
    assert set(found.params) == {"embed", "layers", "masked_head"}
