"""What a run would take, without running it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxformer import models
from jaxformer.objectives import OBJECTIVES
from jaxformer.parallel import mesh as meshes
from jaxformer.train import log
from jaxformer.train import state as states
from jaxformer.train.experiment import Experiment, build, check_mesh
from jaxformer.train.optimizer import describe, make_optimizer
from jaxformer.train.prepare import prepare
from jaxformer.train.step import compile_train_step


def dry_run(chosen: ConfigDict) -> dict[str, int]:
    """Prints shapes, parameters and memory of an experiment; trains nothing, writes nothing.

    The step is compiled for the devices that are here, so the memory is what XLA has planned.

    Returns:
      Bytes a device: {"state", "batch", "temporary", "peak"}.
    """
    settings = build(chosen)
    fixed = settings.goal == "causal_lm" and settings.data.layout == "windows"
    if fixed and settings.model.vocab_size:
        mesh, model, loss_fn, batch = _without_data(settings)
    else:
        run = prepare(chosen, say=print)
        mesh, model, loss_fn, batch = run.mesh, run.model, run.loss_fn, run.batch_shapes
    params = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    optimizer = make_optimizer(settings.optimizer, settings.train.steps, params)
    abstract = states.abstract(model, optimizer, mesh, ema=settings.optimizer.ema_decay > 0)
    print(f"mesh {meshes.describe(mesh)}")
    print(log.parameter_table(params, describe(settings.optimizer, params)))
    for name, leaf in batch.items():
        print(f"batch {name} {leaf.dtype}{list(leaf.shape)}")
    with jax.set_mesh(mesh):
        compiled = compile_train_step(settings, loss_fn, optimizer, abstract, batch)
    plan = compiled.memory_analysis()
    sizes = {
        "state": _device_bytes(abstract),
        "batch": _device_bytes(batch),
        "temporary": int(plan.temp_size_in_bytes),
    }
    sizes["peak"] = sum(sizes.values())
    for name, size in sizes.items():
        print(f"memory {name:<10} {size / 2**20:10.1f} MiB a device")
    return sizes


def _without_data(settings: Experiment) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Returns (mesh, model, loss function, batch shapes) of an experiment that says its vocabulary.

    So that the cost of a large data set's experiment is known before the data set is there.
    """
    mesh = meshes.make(settings.mesh)
    check_mesh(settings, tuple(mesh.shape.values()))
    model = models.make(settings.model)
    loss_fn = OBJECTIVES[settings.goal].make(settings.objective, model, None)
    B, T, sharding = settings.data.batch_size, settings.data.seq_len, meshes.batch_sharding(mesh)
    kinds = {
        "tokens": ((B, T), jnp.int32), "targets": ((B, T), jnp.int32),
        "weights": ((B, T), jnp.float32), "rows": ((B,), jnp.int32),
    }  # fmt: skip
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in kinds.items()
    }
    return mesh, model, loss_fn, batch


def _device_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
