"""What a training step costs, and models of equal size whatever their attention learns."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxformer import data
from jaxformer.data import Info
from jaxformer.errors import UserError
from jaxformer.train import start
from jaxformer.train import state as states
from jaxformer.train.experiment import build, make_model
from jaxformer.train.optimizer import make_optimizer
from jaxformer.train.prepare import Prepared
from jaxformer.train.step import compile_train_step

SLOW = 10.0  # seconds of a step that is long enough to be measured once


class TooLargeError(Exception):
    """A step that would take more memory than there is to be."""


class Cost(NamedTuple):
    """memory_bytes: of one device, as XLA has planned the step; step_seconds: the median step."""

    memory_bytes: int
    step_seconds: float


def parameters(chosen: ConfigDict, info: Info) -> int:
    """Returns the number of parameters of a config's model on data; allocates nothing."""
    model = make_model(build(chosen), info)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def equalled(chosen: ConfigDict, info: Info, wanted: int) -> ConfigDict:
    """Returns the config with the width of its feed-forward layers that gives `wanted` parameters.

    What an attention variant learns besides the projections (Linformer's shorter line, Longformer's
    second projections) is so paid for by a narrower feed-forward layer, to within a unit of it.

    Raises:
      UserError: the variant alone has more parameters than that.
    """
    count = parameters(chosen, info)
    if count == wanted:
        return chosen
    width = build(chosen).model.feed_forward_width
    wider = _with_width(chosen, width + 1)
    units = width + round((wanted - count) / (parameters(wider, info) - count))
    if units < 1:
        raise UserError(
            f"model.attention={chosen.model.attention} learns {count - wanted:,} parameters more "
            f"than the model it is compared with, and no narrower feed-forward layer can pay for "
            "them; give it less to learn"
        )
    return _with_width(chosen, units)


def _with_width(chosen: ConfigDict, units: int) -> ConfigDict:
    changed = ConfigDict(chosen.to_dict())
    with changed.unlocked():
        changed.model.feed_forward = units
    return changed


def measure(run: Prepared, *, limit: int, steps: int = 3) -> Cost:
    """Returns what a training step costs, at random parameters.

    The memory is that of the compiled program: state, batch and temporaries. It is known before
    anything runs, does not depend on what ran before, and is the accelerator's where there is one.

    Args:
      run: the experiment.
      limit: bytes a device; a step that needs more is not run.
      steps: are timed, after one that is not.

    Raises:
      TooLargeError: it needs more than `limit`.
    """
    experiment = run.experiment
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, run.param_shapes)
    abstract = states.abstract(
        run.model, optimizer, run.mesh, ema=experiment.optimizer.ema_decay > 0
    )
    with jax.set_mesh(run.mesh):
        step = compile_train_step(experiment, run.loss_fn, optimizer, abstract, run.batch_shapes)
        memory = planned(step)
        if memory > limit:
            raise TooLargeError(f"needs {memory / 2**30:.1f} GiB, more than {limit / 2**30:.1f}")
        if not steps:
            return Cost(memory, math.nan)
        state: Any = start.fresh(
            run.model, optimizer, abstract, seed=experiment.seed, init_from="", say=print
        )
        batches = data.prefetch(run.dataset.train, 0, 1, experiment.seed, run.batch_sharding)
        with contextlib.closing(batches):
            batch = next(iter(batches))[1]
        seconds: list[float] = []
        for _ in range(steps + 1):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - begin)
            if seconds[-1] > SLOW:
                break
    return Cost(memory, statistics.median(seconds[1:] or seconds))


def planned(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes of a device that a compiled program uses at once."""
    plan = compiled.memory_analysis()
    taken = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(taken + plan.temp_size_in_bytes)
