"""One training step, as a pure function of (state, batch).

A accumulated parts, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxformer.objectives.shared import Loss, Metrics
from jaxformer.train.experiment import Experiment
from jaxformer.train.optimizer import update_ema
from jaxformer.train.state import State, shardings


def make_train_step(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[State, dict[str, jax.Array]], tuple[State, Metrics]]:
    """Returns `step(state, batch) -> (state, metrics)`.

    The step's key is fold_in(key(seed), step): none is stored. A loss or gradient that is not
    finite leaves parameters and optimizer state as they were and counts in metrics["skipped"].

    Args:
      loss_fn: an objective, (params, batch, key, train) -> (loss, metrics).
      optimizer: an optax transformation.
      seed: of dropout and masking.
      accumulate: parts into which the batch is cut; the gradient is that of the whole batch, each
        part weighing by its count of real tokens, and memory that of one part.
      ema_decay: of the average of the parameters in state["ema"]; 0 if there is none.
    """

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, Metrics]:
        params = state["params"]
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        grads, metrics = gradients(loss_fn, params, batch, key, accumulate)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        new = {
            "params": optax.apply_updates(params, updates),
            "opt_state": opt_state,
        }
        if ema_decay:
            new["ema"] = update_ema(state["ema"], new["params"], ema_decay)
        old = {name: state[name] for name in new}
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        one = jnp.ones((), jnp.float32)
        metrics = {
            **metrics,
            "grad_norm": (norm, one),
            "skipped": (1.0 - finite.astype(jnp.float32), one),
        }
        return {"step": state["step"] + 1, **new}, metrics

    return step


def compile_train_step(
    settings: Experiment,
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> jax.stages.Compiled:
    """Returns the experiment's step, compiled for a state and batch of these shapes and shardings.

    The state that it is called with is donated. Call it within `jax.set_mesh(...)`.
    """
    step = make_train_step(
        loss_fn, optimizer, seed=settings.seed, accumulate=settings.train.accumulate,
        ema_decay=settings.optimizer.ema_decay,
    )  # fmt: skip
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings(state), None))
    return jitted.lower(state, batch).compile()


def gradients(
    loss_fn: Loss, params: Any, batch: dict[str, jax.Array], key: jax.Array, accumulate: int = 1
) -> tuple[Any, Metrics]:
    """Returns the gradient of the mean loss over the batch's real tokens, and the metrics.

    With `accumulate` > 1 the parts run one after the other. Part i takes rows i, i + A, i + 2A ...,
    so that every part is spread over all devices as the batch is.
    """
    value_and_grad = jax.value_and_grad(lambda p, b: loss_fn(p, b, key, True), has_aux=True)
    if accumulate == 1:
        (_, metrics), grads = value_and_grad(params, batch)
        return grads, metrics
    whole = getattr(loss_fn, "whole", None)
    if whole is not None:  # what a part cannot know: see objectives.shared.balance
        batch = whole(batch)

    def parts_AB(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        (_, metrics), grads = value_and_grad(params, part)
        # The mean's gradient times its count is the sum's, and sums add up.
        count = metrics["loss"][1]
        return jax.tree.map(
            jnp.add, total, (jax.tree.map(lambda g: g * count, grads), metrics)
        ), None

    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: parts_AB(x)[0], batch))
    (_, metric_shapes), grad_shapes = shapes
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grad_shapes, metric_shapes))
    (grads, metrics), _ = jax.lax.scan(add, zeros, jax.tree.map(parts_AB, batch))
    count = jnp.maximum(metrics["loss"][1], 1.0)
    return jax.tree.map(lambda g: g / count, grads), metrics
