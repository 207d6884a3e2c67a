"""The border of every loss function: shapes in and out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxformer.models import decoder
from jaxformer.objectives import causal_lm
from jaxformer.objectives.shared import checked

B, T, V = 2, 6, 11
TOKENS = jnp.ones((B, T), jnp.int32)
BATCH = {"tokens": TOKENS, "targets": TOKENS, "weights": jnp.ones((B, T))}


def shapes(batch):
    model = decoder.make(decoder.Config(vocab_size=V, width=8, num_layers=1, num_heads=2))
    loss_fn = causal_lm.make(causal_lm.Config(), model, None)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.eval_shape(lambda params, batch: loss_fn(params, batch, None, True), params, batch)


def test_loss_and_metrics_are_scalars():
    loss, metrics = shapes(BATCH)
    assert all(leaf.shape == () for leaf in jax.tree.leaves((loss, metrics)))


@pytest.mark.parametrize("name", ["targets", "weights"])
def test_an_array_that_does_not_fit_the_tokens_is_refused(name):
    # Broadcasting would give a loss, and a wrong one.
    with pytest.raises(AssertionError, match="shape"):
        shapes({**BATCH, name: BATCH[name][:, :1]})


@pytest.mark.parametrize("result", [
    (jnp.ones(B), {}),
    (jnp.ones(()), {"loss": (jnp.ones(B), jnp.ones(()))}),
    (jnp.ones((), jnp.int32), {}),
])  # fmt: skip
def test_a_loss_that_is_no_scalar_is_refused(result):
    loss_fn = checked(targets="BT")(lambda params, batch, key, train: result)
    with pytest.raises(AssertionError, match=r"shape|type"):
        loss_fn({}, BATCH, None, True)
