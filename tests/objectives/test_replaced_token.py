"""ELECTRA's objective: what is drawn, what is replaced, and which way gradients go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.models import encoder
from jaxformer.objectives import replaced_token
from jaxformer.objectives.replaced_token import Config, detect, draw, replace
from tests.objectives import cases

V, D, B, P = 7, 4, 3, 5
KEY = jax.random.key(0)


def speaker():
    """A model that predicts the same at each place: its output bias decides."""
    model = encoder.make(encoder.Config(vocab_size=V, width=D, num_layers=1, num_heads=1))
    shapes = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    bias_V = jnp.log(jnp.array([0.0, 0.4, 0.0, 0.3, 0.2, 0.1, 0.0]) + 1e-30)
    return model, {**params, "masked_head": {**params["masked_head"], "bias": bias_V}}


def test_tokens_are_drawn_from_the_distribution():
    model, params = speaker()
    hidden = jnp.zeros((100, 50, D))
    drawn = np.asarray(draw(model, params, hidden, KEY, None))
    shares = np.bincount(drawn.ravel(), minlength=V) / drawn.size
    for share, expected in zip(shares, [0.0, 0.4, 0.0, 0.3, 0.2, 0.1, 0.0]):
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / drawn.size)


@pytest.mark.slow
def test_a_row_draws_the_same_in_any_part_of_the_batch_and_in_any_chunk(monkeypatch):
    model, params = speaker()
    hidden, rows = jnp.zeros((B, P, D)), jnp.array([4, 9, 2])
    whole = draw(model, params, hidden, KEY, rows)
    assert (whole[0] != whole[1]).any() and (whole[:, 0] != whole[:, 1]).any()
    np.testing.assert_array_equal(draw(model, params, hidden[1:], KEY, rows[1:]), whole[1:])
    monkeypatch.setattr(replaced_token, "DRAWN_AT_ONCE", 2 * B * V)
    np.testing.assert_array_equal(draw(model, params, hidden, KEY, rows), whole)


def test_a_token_that_comes_back_is_not_replaced():
    tokens = jnp.array([[2, 5, 6, 7, 3]])
    where = jnp.array([[2, 1, 0]])
    drawn = jnp.array([[9, 5, 8]])
    got, is_replaced = replace(tokens, where, drawn, jnp.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_array_equal(got, [[2, 5, 9, 7, 3]])  # place 0 is not real: it stays
    np.testing.assert_array_equal(is_replaced, [[False, False, True, False, False]])


def test_detection_counts_real_tokens():
    logits = jnp.array([[2.0, -1.0, 0.5, -3.0]])
    replaced = jnp.array([[True, True, False, False]])
    loss, hits, caught = detect(logits, replaced, jnp.array([[1.0, 1.0, 1.0, 0.0]]))
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
    np.testing.assert_allclose(loss, -np.log(p[0] * p[1] * (1 - p[2])), rtol=1e-6)
    assert (hits, caught) == (1, 1)


def test_the_discriminator_teaches_the_generator_nothing():
    """But for the embeddings that they share, no gradient goes from one to the other."""
    loss_fn, params, batch = cases.make("replaced_token")

    def term(name):
        return jax.grad(lambda p: loss_fn(p, batch, KEY, True)[1][name][0])(params)

    grads, of_generator = jax.jit(lambda: (term("discriminator_loss"), term("generator_loss")))()
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(grads["generator"]))
    assert jnp.abs(grads["discriminator"]["embed"]["tokens"]).max() > 0
    grads = of_generator
    rest = {name: g for name, g in grads["discriminator"].items() if name != "embed"}
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(rest))
    assert jnp.abs(grads["discriminator"]["embed"]["tokens"]).max() > 0


def test_special_tokens_and_padding_are_never_replaced(monkeypatch):
    """A generator that would replace everything by token 9 replaces ordinary tokens only."""
    monkeypatch.setattr(
        replaced_token, "draw", lambda model, params, hidden, *rest: jnp.full(hidden.shape[:2], 9)
    )
    seen = []
    monkeypatch.setattr(
        replaced_token, "replace", lambda *given: seen.append(replace(*given)) or seen[-1]
    )
    loss_fn, params, batch = cases.make("replaced_token")
    run = jax.jit(lambda key: loss_fn(params, batch, key, True) and seen[-1])
    for seed in range(3):
        tokens, is_replaced = run(jax.random.key(seed))
        special = np.isin(batch["tokens"], [cases.MASK, *cases.INFO.special_ids])
        assert not (np.asarray(is_replaced) & special).any()
        np.testing.assert_array_equal(np.asarray(tokens)[special], batch["tokens"][special])
        assert is_replaced.any()


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(UserError, match="discriminator_weight=0"):
        Config(discriminator_weight=0)
