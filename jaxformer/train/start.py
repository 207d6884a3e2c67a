"""Where a run's parameters come from: a key, another run, or its own checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxformer import interop
from jaxformer.checkpoint import restore_params
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.parallel.rules import path_name
from jaxformer.train import state as states
from jaxformer.train.state import State


def fresh(
    model: Model,
    optimizer: optax.GradientTransformation,
    abstract: State,
    *,
    seed: int,
    init_from: str,
    say: Callable[[str], None],
) -> State:
    """Returns the state before step 0, laid out as `abstract` says.

    Args:
      model: its `init` gives what `init_from` lacks.
      optimizer: an optax transformation.
      abstract: shapes with shardings; decides whether there is an average ("ema").
      seed: of the initial parameters, whose values are the same on any mesh.
      init_from: the workdir of a run to start from, a published checkpoint's folder, or "".
      say: is told, in one line, what was taken and what is new.
    """
    ema, shardings = "ema" in abstract, states.shardings(abstract)
    if not init_from:
        initial = jax.jit(
            lambda key: states.initial(model, optimizer, key, ema=ema), out_shardings=shardings
        )
        return initial(jax.random.key(seed))
    given = _parameters(init_from)
    params = jax.jit(model.init, out_shardings=shardings["params"])(jax.random.key(seed))
    if "generator" in given and "generator" not in params:
        given = given["discriminator"]  # of an ELECTRA run: the half that one keeps
    params, words = transplant(given, params, init_from)
    say(words)
    start = jax.jit(
        lambda params: states.from_params(params, optimizer, ema=ema), out_shardings=shardings
    )
    return start(jax.tree.map(jax.device_put, params, shardings["params"]))


def _parameters(source: str) -> Any:
    """Returns the parameters of a run, or of a published checkpoint."""
    if interop.is_published(source):
        return interop.load_huggingface(source)[1]
    return restore_params(source)[0]


def transplant(given: Any, params: Any, source: str) -> tuple[Any, str]:
    """Returns `params` with every array that `given` also has, and one line that says which.

    An array that only `params` has (a new head) stays as it is; one that only `given` has is left.

    Raises:
      UserError: an array that both have, in different shapes; or none in common.
    """
    old = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    new = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in new.keys() & old.keys():
        if new[name].shape != old[name].shape:
            hint = "; use that run's tokenizer: data.tokenizer=" + source if "token" in name else ""
            raise UserError(
                f"train.init_from={source}: {name} has shape {tuple(old[name].shape)}, but this "
                f"model's is {tuple(new[name].shape)}{hint}"
            )
    taken = [name for name in new if name in old]
    if not taken:
        raise UserError(f"train.init_from={source}: no array in common with this model")
    made, left = [n for n in new if n not in old], [n for n in old if n not in new]
    words = f"starts from {source}: {len(taken)} arrays taken"
    words += f"; new: {', '.join(made)}" if made else ""
    words += f"; left behind: {', '.join(left)}" if left else ""
    result = jax.tree_util.tree_map_with_path(
        lambda path, leaf: old.get(path_name(path), leaf), params
    )
    return result, words
