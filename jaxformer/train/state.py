"""The train state: a plain dict of arrays, split over the mesh by the rules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxformer.models import Model
from jaxformer.parallel import rules

State = dict[str, Any]  # {"step": int32 scalar, "params", "opt_state", ["ema"]}


def initial(
    model: Model, optimizer: optax.GradientTransformation, key: jax.Array, *, ema: bool
) -> State:
    """Returns the state before the first step; a pure function, to be traced or jitted."""
    return from_params(model.init(key), optimizer, ema=ema)


def from_params(params: Any, optimizer: optax.GradientTransformation, *, ema: bool) -> State:
    """Returns the state before the first step of a run that starts from `params`."""
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": optimizer.init(params),
    }
    # A copy, for the step donates both and one buffer cannot be given away twice.
    return {**state, "ema": jax.tree.map(jnp.copy, params)} if ema else state


def abstract(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> State:
    """Returns the state as shapes with their shardings on `mesh`; allocates nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key: initial(model, optimizer, key, ema=ema), key)
    shardings = rules.state_shardings(shapes, shapes["params"], mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def shardings(state: State) -> State:
    """Returns the shardings of a state of arrays or of shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
