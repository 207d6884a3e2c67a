"""The step's metamorphic tests: how a batch is cut, padded, ordered or spread changes nothing."""

from __future__ import annotations

import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.models import decoder, encoder
from jaxformer.objectives import OBJECTIVES
from jaxformer.parallel import mesh
from jaxformer.train import optimizer as optimizers
from jaxformer.train import state as states
from jaxformer.train.step import gradients as eager_gradients
from jaxformer.train.step import make_train_step
from tests.objectives import cases

gradients = jax.jit(eager_gradients, static_argnums=0, static_argnames="accumulate")

V, B, T = 48, 8, 12
INFO = SimpleNamespace(
    vocab_size=V, mask_id=4, special_ids=(0, 2, 3, 4), num_classes=3, class_names=("a", "b", "c")
)
KEYS = dict(vocab_size=V, width=16, num_layers=2, num_heads=4, max_length=32)


def setup(goal: str):
    asked = OBJECTIVES[goal].adapt(OBJECTIVES[goal].Config(), INFO)
    if goal == "causal_lm":
        model = decoder.make(decoder.Config(**KEYS, positions="rope", **asked))
    else:
        model = encoder.make(encoder.Config(**KEYS, **asked))
    loss_fn = OBJECTIVES[goal].make(OBJECTIVES[goal].Config(), model, INFO)
    return model, loss_fn, jax.jit(model.init)(jax.random.key(0))


def make_batch() -> dict[str, jax.Array]:
    """Rows of unequal length, some with two packed texts."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, V, (B, T))
    lengths = np.array([12, 3, 7, 12, 1, 9, 12, 5])
    segment_ids = (np.arange(T) < lengths[:, None]).astype(np.int32)
    segment_ids[3, 6:] = 2
    positions = np.broadcast_to(np.arange(T), (B, T)).copy()
    positions[3, 6:] -= 6
    weights = (segment_ids != 0).astype(np.float32)
    weights[3, 5] = 0.0
    return {
        "tokens": jnp.array(np.where(segment_ids != 0, tokens, 0), jnp.int32),
        "targets": jnp.array(np.roll(tokens, -1, axis=1), jnp.int32),
        "weights": jnp.array(weights),
        "segment_ids": jnp.array(segment_ids),
        "positions": jnp.array(positions, jnp.int32),
        "rows": jnp.arange(B, dtype=jnp.int32),
        "labels": jnp.array(rng.integers(0, 3, B), jnp.int32),
    }


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3), rtol=0)


def compare(one, other):
    (grads, metrics), (other_grads, other_metrics) = one, other
    for name in metrics:
        close(metrics[name][0], other_metrics[name][0])
        close(metrics[name][1], other_metrics[name][1])
    jax.tree.map(close, grads, other_grads)


@pytest.mark.slow
@pytest.mark.parametrize(
    "goal",
    ["masked_lm", *(pytest.param(g, marks=pytest.mark.slow) for g in ("causal_lm", "classify"))],
)
def test_accumulation(goal):
    """1 part or 4, though parts hold unequal numbers of real tokens."""
    _, loss_fn, params = setup(goal)
    key = jax.random.key(3)
    whole = gradients(loss_fn, params, make_batch(), key)
    compare(gradients(loss_fn, params, make_batch(), key, accumulate=4), whole)


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["bert_pretraining:order", "replaced_token"])
def test_accumulation_of_a_sum_of_means(goal):
    """Each mean has a count of its own, which no part knows."""
    loss_fn, params, batch = cases.make(goal)
    whole, metrics = gradients(loss_fn, params, batch, jax.random.key(3))
    parts, same = gradients(loss_fn, params, batch, jax.random.key(3), accumulate=2)
    jax.tree.map(close, same, metrics)
    far = optax.global_norm(jax.tree.map(jnp.subtract, parts, whole))
    assert far < 1e-5 * optax.global_norm(whole)


@pytest.mark.parametrize("goal", ["causal_lm", pytest.param("classify", marks=pytest.mark.slow)])
def test_padding(goal):
    """Longer rows and more rows of padding, filled with anything, weigh nothing."""
    _, loss_fn, params = setup(goal)
    key, batch = jax.random.key(3), make_batch()
    wider = {
        name: jnp.pad(
            x, ((0, 2), (0, 5)) if x.ndim == 2 else (0, 2),
            constant_values=9 if name in ("tokens", "targets") else 0,
        )
        for name, x in batch.items()
    }  # fmt: skip
    compare(gradients(loss_fn, params, wider, key), gradients(loss_fn, params, batch, key))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["causal_lm", "masked_lm"])
def test_no_device_ever_holds_the_activations_of_all_rows(goal):
    """Parameters are gathered, rows are not: whatever the split."""
    model, loss_fn, _ = setup(goal)
    for sizes in ((2, 2, 2), (1, 4, 2)):
        made = mesh.make(mesh.Config(*sizes), jax.devices())
        optimizer = optax.sgd(0.1)
        with jax.set_mesh(made):
            abstract = states.abstract(model, optimizer, made, ema=False)
            step = jax.jit(make_train_step(loss_fn, optimizer, seed=0))
            batch = jax.device_put(make_batch(), mesh.batch_sharding(made))
            text = step.lower(abstract, batch).compile().as_text()
        assert "all-gather" in text
        found = re.findall(rf"f32\[{B},{T},\d+[^=]*", text)
        assert not found, f"{sizes}: {found[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["causal_lm", "masked_lm", "classify"])
def test_batch_order(goal):
    """Rows in another order; masking follows a row's number, not its place."""
    _, loss_fn, params = setup(goal)
    key, batch = jax.random.key(3), make_batch()
    order = jnp.array([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = {name: x[order] for name, x in batch.items()}
    compare(gradients(loss_fn, params, shuffled, key), gradients(loss_fn, params, batch, key))


def run_steps(goal, sizes, steps=3, name="adamw", accumulate=1):
    """The loss trace and the parameters after some steps on a mesh of (data, fsdp, tensor)."""
    model, loss_fn, _ = setup(goal)
    count = int(np.prod(sizes))
    made = mesh.make(mesh.Config(*sizes), jax.devices()[:count])
    config = optimizers.Config(name=name, learning_rate=0.02, warmup_steps=0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = optimizers.make_optimizer(config, 10, shapes)
    with jax.set_mesh(made):
        abstract = states.abstract(model, optimizer, made, ema=True)
        state = jax.jit(
            lambda key: states.initial(model, optimizer, key, ema=True),
            out_shardings=states.shardings(abstract),
        )(jax.random.key(0))
        step = jax.jit(
            make_train_step(loss_fn, optimizer, seed=1, accumulate=accumulate, ema_decay=0.5),
            donate_argnums=0, out_shardings=(states.shardings(abstract), None),
        )  # fmt: skip
        batch = jax.device_put(make_batch(), mesh.batch_sharding(made))
        losses = []
        for _ in range(steps):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"][0]) / float(metrics["loss"][1]))
    return losses, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("goal,name", [("causal_lm", "adamw"), ("causal_lm", "muon"),
                                       ("masked_lm", "adamw"), ("classify", "lion")])  # fmt: skip
def test_eight_devices_equal_one(goal, name):
    """Every split of eight devices that fits gives the loss trace of one device."""
    expected, state = run_steps(goal, (1, 1, 1), name=name)
    assert expected[-1] < expected[0]
    for sizes in [(8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2), (1, 2, 4)]:
        losses, other = run_steps(goal, sizes, name=name)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=f"{sizes}")
        close(other["ema"]["embed"]["tokens"], state["ema"]["embed"]["tokens"], 1e-3)


@pytest.mark.slow
def test_two_by_two_devices_equal_one():
    expected, _ = run_steps("causal_lm", (1, 1, 1))
    losses, _ = run_steps("causal_lm", (1, 2, 2), accumulate=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing():
    _, loss_fn, params = setup("causal_lm")
    optimizer = optax.adam(0.1)

    def broken(params, batch, key, train):
        loss, metrics = loss_fn(params, batch, key, train)
        bad = jnp.where(batch["bad"], jnp.nan, 1.0)
        return loss * bad, metrics

    step = jax.jit(make_train_step(broken, optimizer, seed=0))
    state = states.from_params(params, optimizer, ema=False)
    after, metrics = step(state, {**make_batch(), "bad": jnp.array(True)})
    assert float(metrics["skipped"][0]) == 1.0 and int(after["step"]) == 1
    for name in ("params", "opt_state"):
        chex.assert_trees_all_equal(after[name], state[name])
    after, metrics = step(state, {**make_batch(), "bad": jnp.array(False)})
    assert float(metrics["skipped"][0]) == 0.0
    assert not np.array_equal(after["params"]["embed"]["tokens"], params["embed"]["tokens"])


@pytest.mark.slow
def test_the_key_is_of_seed_and_step_only():
    """Dropout draws anew at each step, and the same again when the step is made again."""
    model = decoder.make(decoder.Config(**KEYS, dropout=0.3))
    loss_fn = OBJECTIVES["causal_lm"].make(OBJECTIVES["causal_lm"].Config(), model, INFO)
    optimizer = optax.sgd(0.0)
    step = jax.jit(make_train_step(loss_fn, optimizer, seed=5))
    state = states.from_params(model.init(jax.random.key(0)), optimizer, ema=False)
    one, first = step(state, make_batch())
    _, again = step(state, make_batch())
    _, second = step(one, make_batch())
    assert float(first["loss"][0]) == float(again["loss"][0]) != float(second["loss"][0])
