"""Teacher forcing against transformers' T5, label smoothing against torch; what shares the loss."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.data import corruption
from jaxformer.errors import UserError
from jaxformer.models import encoder_decoder
from jaxformer.objectives import OBJECTIVES, infilling, seq2seq, span_corruption
from tests.objectives.cases import INFO
from tests.objectives.oracle import D, L, N, V, randomise, t5

B, S, T = 3, 9, 7
SOURCES, TARGETS = np.array([S, 5, 0]), np.array([T, 4, 0])


def batch_of() -> dict:
    """A full row, a padded one, and one of padding only; targets are shifted for the decoder."""
    rng = np.random.default_rng(0)
    real_BT = np.arange(T) < TARGETS[:, None]
    targets_BT = rng.integers(2, V, (B, T))
    tokens_BT = np.pad(targets_BT[:, :-1], ((0, 0), (1, 0)))  # T5 begins with its padding, 0
    batch = {
        "source": rng.integers(2, V, (B, S)),
        "source_segment_ids": np.arange(S) < SOURCES[:, None],
        "tokens": np.where(real_BT, tokens_BT, 0),
        "targets": np.where(real_BT, targets_BT, 0), "segment_ids": real_BT,
    }  # fmt: skip
    ints = {name: jnp.array(x, jnp.int32) for name, x in batch.items()}
    return ints | {"weights": jnp.array(real_BT, jnp.float32)}


def test_t5():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=V, d_model=D, d_kv=D // N, d_ff=4 * D, num_layers=L, num_heads=N,
            decoder_start_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    params = jax.tree.map(jnp.array, t5(randomise(theirs)))
    keys = dict(encoder_decoder.SIZES["t5_small"], vocab_size=V, width=D, num_layers=L)
    keys |= dict(num_heads=N, feed_forward=4 * D, logit_scale=D**-0.5)
    model = encoder_decoder.make(encoder_decoder.Config(**keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)

    batch = batch_of()
    labels = np.where(batch["weights"] > 0, batch["targets"], -100)[:2].astype(np.int64)
    expected = theirs(
        input_ids=torch.tensor(np.array(batch["source"][:2])).long(),
        attention_mask=torch.tensor(np.array(batch["source_segment_ids"][:2])),
        labels=torch.tensor(labels),
    )
    right = (expected.logits.argmax(-1).numpy() == labels)[labels >= 0].mean()
    smoothed = torch.nn.functional.cross_entropy(
        expected.logits.flatten(0, 1), torch.tensor(labels).flatten(), label_smoothing=0.2
    )
    loss_fn = seq2seq.make(seq2seq.Config(label_smoothing=0.2), model, INFO)
    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True), static_argnums=(2, 3))
    (loss, metrics), grads = run(params, batch, None, False)
    # Evaluation reports the likelihood itself, training the smoothed loss that it minimises.
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=2e-5)
    total, count = metrics["accuracy"]
    assert count == TARGETS.sum()
    np.testing.assert_allclose(total / count, right)
    (loss, _), grads = run(params, batch, None, True)
    np.testing.assert_allclose(loss, smoothed.item(), rtol=2e-5)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_the_paper_smooths_by_a_tenth():
    assert seq2seq.Config().label_smoothing == 0.1  # Vaswani 2017, 5.4
    assert span_corruption.Config().label_smoothing == infilling.Config().label_smoothing == 0.0


def test_denoising_is_the_same_loss_over_other_batches():
    assert span_corruption.make is infilling.make is seq2seq.make


def test_decoding_begins_where_the_targets_do():
    assert seq2seq.adapt(seq2seq.Config(), INFO) == {"start_id": INFO.start_id}


@pytest.mark.parametrize("name", ["span_corruption", "infilling", "permutation_lm"])
def test_the_host_knows_the_options(name):
    """Kind and options of the transform, and their defaults, are those of data.corruption."""
    goal = OBJECTIVES[name]
    kind, options = goal.host_transform(goal.Config())
    known = inspect.signature(getattr(corruption, kind)).parameters
    assert {key: known[key].default for key in options} == options


@pytest.mark.parametrize("config, keys", [
    (span_corruption, {"rate": 0.0}), (span_corruption, {"mean_span": 0.5}),
    (infilling, {"rate": 1.0}), (seq2seq, {"label_smoothing": 1.0}),
])  # fmt: skip
def test_values_out_of_range_are_refused(config, keys):
    with pytest.raises(UserError, match=rf"objective\.{next(iter(keys))}"):
        config.Config(**keys)
