"""What holds for every objective: padding weighs nothing, parts add up, gradients are finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives import cases
from tests.objectives.cases import LENGTHS, NAMES, B, T

KEY = jax.random.key(5)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    loss_fn, params, batch = cases.make(request.param)
    run = jax.jit(jax.value_and_grad(lambda p, b: loss_fn(p, b, KEY, True), has_aux=True))
    return loss_fn, params, batch, run


def close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * (1 + float(jnp.abs(b).max())), rtol=0)


def scaled(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


@pytest.mark.slow
def test_the_loss_is_the_mean_and_gradients_are_finite(case):
    _, params, batch, run = case
    (loss, metrics), grads = run(params, batch)
    total, count = metrics["loss"]
    assert count > 0
    close(loss, total / count)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert any(bool(jnp.abs(g).max() > 0) for g in jax.tree.leaves(grads))
    for total, count in metrics.values():
        assert total >= 0 and count >= 0


def test_padding_weighs_nothing(case):
    """What stands in padding, tokens and labels, changes no loss, metric or gradient."""
    _, params, batch, run = case
    padding_BT = jnp.arange(T) >= LENGTHS[:, None]
    empty_B = jnp.array(LENGTHS == 0)
    changed = {**batch, "tokens": jnp.where(padding_BT, 9, batch["tokens"])}
    for name, x in batch.items():
        if name in ("labels", "next_sentence", "order", "start", "end"):
            changed[name] = jnp.where(empty_B, 1, x).astype(x.dtype)
        elif name == "tags":
            changed[name] = jnp.where(padding_BT, 1, x)
        elif name == "targets":
            changed[name] = jnp.where(batch["weights"] == 0, 9, x)
    close(run(params, changed), run(params, batch))


def test_parts_add_up(case):
    """Sums, counts and gradients of the parts are those of the whole, whose rows say who they are.

    What depends on the whole batch is added to it before it is cut, as the train step does. A part
    of padding only is nothing.
    """
    loss_fn, params, batch, run = case
    (_, whole), gradient = run(params, batch)
    if loss_fn.whole is not None:
        batch = loss_fn.whole(batch)
    parts = []
    for rows in (np.arange(0, B, 2), np.arange(1, B, 2)):
        (_, metrics), grads = run(params, {name: x[rows] for name, x in batch.items()})
        parts.append((metrics, scaled(grads, metrics["loss"][1])))
    metrics, sums = jax.tree.map(jnp.add, *parts)
    close(metrics, whole)
    close(scaled(sums, 1 / metrics["loss"][1]), gradient, 1e-4)

    (loss, metrics), grads = run(params, {name: x[np.array([2, 2])] for name, x in batch.items()})
    assert loss == 0 and metrics["loss"] == (0, 0)
    assert all(bool((g == 0).all()) for g in jax.tree.leaves(grads))
