"""Taking the parameters out of a run, without its optimizer's state."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxformer.checkpoint import arrays, steps
from jaxformer.checkpoint.steps import DamagedError
from jaxformer.errors import UserError


def restore_params(
    path: str | os.PathLike[str],
    *,
    step: int | str = "latest",
    ema: bool = True,
    abstract: Any = None,
    say: Callable[[str], None] = print,
) -> tuple[Any, dict[str, Any]]:
    """Restores the parameters of a run, for fine-tuning, evaluation or generation.

    Args:
      path: a workdir, its folder of checkpoints, or the folder of one step.
      step: "latest", "best" (lowest validation loss) or a number.
      ema: take the averaged parameters where there are any.
      abstract: the parameters as `jax.ShapeDtypeStruct` with shardings; None puts them on one
        device.
      say: prints one line for the user.

    Returns:
      The parameters, bit-equal to the saved ones, and the run's config.

    Raises:
      UserError: no such checkpoint, or it is damaged, or it does not fit `abstract`.
    """
    folder, found = steps.find(os.fspath(path))
    folders = {number: os.path.join(folder, str(number)) for number in reversed(found)}
    if not found:
        folders = {-1: folder}
    elif step == "best":
        folders = {number: folders[number] for number in _ranked(folders)}
        if not folders:
            raise UserError(f"no checkpoint in {folder} has a validation loss; use step=latest")
    elif step != "latest":
        if step not in folders:
            have = ", ".join(str(number) for number in found)
            raise UserError(f"no checkpoint of step {step} in {folder}; there are: {have}")
        folders = {int(step): folders[int(step)]}

    def accept(meta: dict[str, Any]) -> Any:
        has_ema = any(name.startswith("ema/") for name in meta["leaves"])
        item = "ema" if ema and has_ema else "params"
        leaves = {
            name: leaf for name, leaf in meta["leaves"].items() if name.startswith(item + "/")
        }
        if abstract is None:
            return _nested(leaves)
        wanted = arrays.abstract_of({item: abstract})
        arrays.refuse(arrays.misfits(wanted, {"leaves": leaves}), folder)
        return wanted

    with contextlib.ExitStack() as stack:
        orbax = functools.cache(lambda: stack.enter_context(arrays.open_checkpointer()))
        state, meta, _ = arrays.first_intact(folders, accept, orbax, say)
    (params,) = state.values()
    return params, meta["run_config"]


def run_config(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the config of a run, of which no array is read; None where there is no run.

    Args:
      path: a workdir, its folder of checkpoints, or the folder of one step.
    """
    try:
        folder, found = steps.find(os.fspath(path))
    except UserError:
        return None
    for at in [os.path.join(folder, str(step)) for step in reversed(found)] or [folder]:
        with contextlib.suppress(DamagedError):
            return steps.read_meta(at)["run_config"]
    return None


def _ranked(folders: Mapping[int, str]) -> list[int]:
    metrics = {}
    for step, folder in folders.items():
        try:
            metrics[step] = steps.read_meta(folder)["metric"]
        except DamagedError:
            continue
    return steps.best_first(metrics)


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the nested dict of `jax.ShapeDtypeStruct` that the leaves' names spell."""
    tree: dict[str, Any] = {}
    for name, (dtype, shape, _) in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(shape, dtype, sharding=arrays.one_device())
    return tree
