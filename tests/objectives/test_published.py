"""Losses of BERT, ELECTRA and XLNet against transformers', with the same random weights."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.models import electra, encoder, xlnet
from jaxformer.objectives import (
    bert_pretraining,
    classify,
    extractive_qa,
    permutation_lm,
    replaced_token,
    tag,
)  # fmt: skip
from tests.objectives.oracle import D, L, N, T, V, bert, linear, masked_head, randomise
from tests.objectives.oracle import xlnet as xlnet_tree

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, MASK, CLS, SEP = 3, 4, 2, 3
KEY = jax.random.key(7)
LENGTHS = np.array([T, 8, 0])
KEYS = dict(vocab_size=V, max_length=T, width=D, num_layers=L, num_heads=N, num_token_types=2)
THEIRS = dict(
    vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=N,
    intermediate_size=4 * D, max_position_embeddings=T, type_vocab_size=2,
)  # fmt: skip
INFO = types.SimpleNamespace(
    vocab_size=V, mask_id=MASK, special_ids=(0, 1, CLS, SEP), num_classes=0, class_names=(),
)  # fmt: skip
TAGS = types.SimpleNamespace(num_classes=5)


def batch_of(**more) -> dict:
    """[CLS] a [SEP] b [SEP], one row padded, and one of padding only."""
    tokens_BT = np.random.default_rng(0).integers(5, V, (B, T))
    tokens_BT[:, 0], tokens_BT[:, 3] = CLS, SEP
    real_BT = np.arange(T) < LENGTHS[:, None]
    types_BT = np.where(real_BT, np.arange(T) > 3, 0)
    batch = {"tokens": np.where(real_BT, tokens_BT, 0), "segment_ids": real_BT}
    batch |= {"token_types": types_BT, "rows": np.arange(B)}
    ints = {name: jnp.array(x, jnp.int32) for name, x in batch.items()}
    return ints | {name: jnp.array(x) for name, x in more.items()}


def inputs(batch: dict, rows=slice(0, 2)) -> dict:
    """What the published model reads; it cannot read a row of padding only."""
    names = {"input_ids": "tokens", "attention_mask": "segment_ids"}
    names["token_type_ids"] = "token_types"
    return {ours: tensor(batch[name][rows]) for ours, name in names.items()}


def tensor(x):
    x = np.array(x)
    return torch.tensor(x.astype(np.int64) if x.dtype == np.int32 else x)


def check(loss_fn, model, params, batch, expected, **metrics) -> None:
    """The tree fits the model; loss and metrics are as published; gradients are finite."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    run = jax.jit(jax.value_and_grad(lambda p: loss_fn(p, batch, KEY, True), has_aux=True))
    (loss, found), grads = run(jax.tree.map(jnp.array, params))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(loss, expected.item(), rtol=2e-5)
    for name, value in metrics.items():
        total, count = found[name]
        np.testing.assert_allclose(total / count, float(value), rtol=2e-5, atol=1e-7, err_msg=name)


def hidden_labels(batch: dict, key, config) -> tuple[jax.Array, np.ndarray]:
    """The corrupted tokens, and their labels as transformers wants them."""
    corrupted_BT, where_BP, labels_BP, weights_BP = replaced_token.masked_lm.corrupt(
        batch, key, config, mask_id=MASK, special_ids=INFO.special_ids, vocab_size=V
    )
    labels_BT = np.full((B, T), -100)
    for b, p in zip(*np.nonzero(weights_BP)):
        labels_BT[b, where_BP[b, p]] = labels_BP[b, p]
    return corrupted_BT, labels_BT


@pytest.mark.parametrize("label", ["next_sentence", "order"])
def test_bert_pretraining(label):
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**THEIRS))
    weights = randomise(theirs)
    params = bert(weights) | {
        "masked_head": masked_head(
            weights, "cls.predictions.transform.dense", "cls.predictions",
            "cls.predictions.transform.LayerNorm",
        ),
        "pooler": linear(weights, "bert.pooler.dense"),
        "next_sentence": linear(weights, "cls.seq_relationship"),
    }  # fmt: skip
    config = bert_pretraining.Config(rate=0.4)
    model = encoder.make(encoder.Config(**KEYS, **bert_pretraining.adapt(config, INFO)))
    batch = batch_of(**{label: np.array([0, 1, 0], np.int32)})
    corrupted_BT, labels_BT = hidden_labels(batch, jax.random.split(KEY)[0], config)
    expected = theirs(
        **inputs({**batch, "tokens": corrupted_BT}), labels=torch.tensor(labels_BT[:2]),
        next_sentence_label=tensor(batch[label][:2]),
    )  # fmt: skip
    right = expected.seq_relationship_logits.argmax(-1) == tensor(batch[label][:2])
    loss_fn = bert_pretraining.make(config, model, INFO)
    check(loss_fn, model, params, batch, expected.loss, pair_accuracy=right.float().mean())


def test_bert_pretraining_wants_token_types():
    model = encoder.make(encoder.Config(**{**KEYS, "num_token_types": 0}, next_sentence_head=True))
    loss_fn = bert_pretraining.make(bert_pretraining.Config(), model, INFO)
    with pytest.raises(bert_pretraining.UserError, match="num_token_types=2"):
        loss_fn({}, batch_of(order=np.zeros(B, np.int32)), KEY, True)


def test_extractive_qa():
    """Padding is no candidate: transformers gets the padded row without its padding."""
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(**THEIRS))
    weights = randomise(theirs)
    params = bert(weights) | {"span": linear(weights, "qa_outputs")}
    model = encoder.make(encoder.Config(**KEYS, **extractive_qa.adapt(None, INFO)))
    batch = batch_of(start=np.array([5, 0, 0], np.int32), end=np.array([9, 0, 0], np.int32))
    each, start, end = [], [], []
    for row in (0, 1):
        read = {name: x[:, : LENGTHS[row]] for name, x in inputs(batch, np.array([row])).items()}
        at = {name: tensor(batch[name][row : row + 1]) for name in ("start", "end")}
        out = theirs(**read, start_positions=at["start"], end_positions=at["end"])
        each.append(out.loss)
        start.append(int(out.start_logits.argmax() == at["start"]))
        end.append(int(out.end_logits.argmax() == at["end"]))
    loss_fn = extractive_qa.make(extractive_qa.Config(), model, INFO)
    check(
        loss_fn, model, params, batch, sum(each) / 2, start_accuracy=np.mean(start),
        end_accuracy=np.mean(end), accuracy=np.mean(np.multiply(start, end)),
    )  # fmt: skip


def test_tag():
    config = transformers.BertConfig(**THEIRS, num_labels=5)
    theirs = transformers.BertForTokenClassification(config)
    weights = randomise(theirs)
    params = bert(weights) | {"tagger": linear(weights, "classifier")}
    model = encoder.make(encoder.Config(**KEYS, **tag.adapt(tag.Config(), TAGS)))
    tags_BT = np.random.default_rng(1).integers(-1, 5, (B, T)).astype(np.int32)
    batch = batch_of(tags=tags_BT)
    counts_BT = (tags_BT >= 0) & (np.arange(T) < LENGTHS[:, None])
    labels = torch.tensor(np.where(counts_BT, tags_BT, -100)[:2]).long()
    expected = theirs(**inputs(batch), labels=labels)
    right = (expected.logits.argmax(-1) == labels)[labels >= 0].float().mean()
    loss_fn = tag.make(tag.Config(), model, INFO)
    check(loss_fn, model, params, batch, expected.loss, accuracy=right)


def test_regression():
    config = transformers.BertConfig(**THEIRS, num_labels=1)
    theirs = transformers.BertForSequenceClassification(config)
    weights = randomise(theirs)
    params = bert(weights) | {
        "pooler": linear(weights, "bert.pooler.dense"),
        "classifier": linear(weights, "classifier"),
    }
    model = encoder.make(encoder.Config(**KEYS, **classify.adapt(classify.Config(), INFO)))
    batch = batch_of(labels=np.array([3.5, 0.25, -1], np.float32))
    expected = theirs(**inputs(batch), labels=tensor(batch["labels"][:2]))
    away = (expected.logits[:, 0] - tensor(batch["labels"][:2])).abs().mean().item()
    loss_fn = classify.make(classify.Config(), model, INFO)
    check(loss_fn, model, params, batch, expected.loss, absolute_error=away)


def test_permutation_lm():
    """The last tokens of an order drawn for each row; one of the predictions is not there."""
    P = 3
    theirs = transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=V, d_model=D, n_layer=L, n_head=N, d_inner=4 * D)
    )
    params = xlnet_tree(randomise(theirs))
    config = permutation_lm.Config()
    model = xlnet.make(xlnet.Config(vocab_size=V, width=D, num_layers=L, num_heads=N))
    rank_BT = np.random.default_rng(3).permuted(np.tile(np.arange(T), (B, 1)), axis=1)
    rank_BT[1] = np.argsort(np.argsort(np.where(np.arange(T) < LENGTHS[1], rank_BT[1], -1)))
    at_BP = np.argsort(rank_BT, axis=1)[:, -P:]
    batch = batch_of(
        perm_mask=rank_BT[:, :, None] <= rank_BT[:, None, :], weights=np.ones((B, P), np.float32),
        target_mapping=np.eye(T, dtype=np.float32)[at_BP],
    )  # fmt: skip
    batch["targets"] = jnp.take_along_axis(batch["tokens"], at_BP, axis=1)
    batch["weights"] = batch["weights"].at[2].set(0).at[1, 1].set(0)
    labels_BP = torch.tensor(np.where(batch["weights"] > 0, batch["targets"], -100)[:2]).long()
    expected = theirs(
        **inputs(batch), perm_mask=tensor(batch["perm_mask"][:2]).float(), use_mems=False,
        target_mapping=tensor(batch["target_mapping"][:2]), labels=labels_BP,
    )  # fmt: skip
    right = (expected.logits.argmax(-1) == labels_BP)[labels_BP >= 0].float().mean()
    loss_fn = permutation_lm.make(config, model, INFO)
    check(loss_fn, model, params, batch, expected.loss, accuracy=right)


@pytest.mark.parametrize("embedding_size", [0, 12])
def test_electra(embedding_size, monkeypatch):
    """Generator and discriminator by hand; some of the drawn tokens are the original ones."""
    E = embedding_size or D
    halves = dict(THEIRS, embedding_size=E)
    small = dict(hidden_size=D // 2, intermediate_size=2 * D, num_attention_heads=N // 2)
    generator = transformers.ElectraForMaskedLM(transformers.ElectraConfig(**{**halves, **small}))
    discriminator = transformers.ElectraForPreTraining(transformers.ElectraConfig(**halves))
    randomise(discriminator)
    generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
    of_discriminator = {n: x.numpy() for n, x in discriminator.state_dict().items()}
    shared = {n: x.clone() for n, x in generator.electra.embeddings.state_dict().items()}
    randomise(generator)
    generator.electra.embeddings.load_state_dict(shared)
    of_generator = {n: x.numpy() for n, x in generator.state_dict().items()}
    params = electra.join(
        bert(of_generator, "electra", N // 2)
        | {
            "masked_head": masked_head(
                of_generator, "generator_predictions.dense", "generator_lm_head",
                "generator_predictions.LayerNorm",
            )
        },
        bert(of_discriminator, "electra")
        | {
            "discriminator_dense": linear(of_discriminator, "discriminator_predictions.dense"),
            "discriminator": linear(
                of_discriminator, "discriminator_predictions.dense_prediction"
            ),
        },
    )  # fmt: skip
    config = replaced_token.Config(rate=0.4)
    model = electra.make(
        electra.Config(**KEYS, embedding_size=embedding_size, generator_fraction=0.5)
    )
    batch = batch_of()
    corrupted_BT, labels_BT = hidden_labels(batch, jax.random.split(KEY, 4)[0], config)
    drawn_BT = np.where(np.arange(T) % 2, np.asarray(batch["tokens"]), 17)
    monkeypatch.setattr(
        replaced_token, "draw",
        lambda *given: jnp.take_along_axis(jnp.array(drawn_BT), where(batch, config), axis=1),
    )  # fmt: skip

    filled = generator(
        **inputs({**batch, "tokens": corrupted_BT}), labels=torch.tensor(labels_BT[:2])
    )
    tokens_BT = np.where(labels_BT >= 0, drawn_BT, batch["tokens"]).astype(np.int32)
    replaced_BT = (tokens_BT != np.asarray(batch["tokens"])).astype(np.int32)
    hidden = (labels_BT >= 0).sum()
    assert 0 < replaced_BT.sum() < hidden  # some hidden tokens came back as they were
    told = discriminator(**inputs({**batch, "tokens": tokens_BT}), labels=tensor(replaced_BT[:2]))
    check(
        replaced_token.make(config, model, INFO), model, params, batch,
        filled.loss + 50 * told.loss, generator_loss=filled.loss.item(),
        discriminator_loss=told.loss.item(), replaced=replaced_BT.sum() / LENGTHS.sum(),
    )  # fmt: skip


def where(batch: dict, config) -> jax.Array:
    key = jax.random.split(KEY, 4)[0]
    return replaced_token.masked_lm.corrupt(
        batch, key, config, mask_id=MASK, special_ids=INFO.special_ids, vocab_size=V
    )[1]
