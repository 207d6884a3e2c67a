"""The training loop: one for every family and objective, a list of stages.

A batch's way: data/pipeline.py, train/step.py, objectives/, models/, modules/block.py, ops/.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxformer import data
from jaxformer.checkpoint import Checkpointer, WorkdirLock, warm_up
from jaxformer.errors import UserError
from jaxformer.evaluate import evaluate, make_eval_step
from jaxformer.parallel import mesh as meshes
from jaxformer.train import log, metrics, start
from jaxformer.train import state as states
from jaxformer.train.optimizer import describe, make_optimizer, make_schedule
from jaxformer.train.prepare import Prepared, prepare
from jaxformer.train.sample import sample
from jaxformer.train.step import compile_train_step
from jaxformer.train.stop import StopRequest, listen

# What may differ between a checkpoint and the run that goes on from it: nothing that the batches
# or the past updates depend on. (More steps stretch the schedule from here on.)
FREE_ON_RESUME = ("mesh.", "checkpoint.", "generate.", "train.steps", "train.eval_every",
                  "train.eval_tokens", "train.log_every", "train.sample_every", "train.nonfinite",
                  "train.init_from", "data.cache_dir", "data.eval_stride", "model.unroll",
                  "model.attention_backend")  # fmt: skip


def train(chosen: ConfigDict, workdir: str | Path, *, hints: tuple[str, ...] = ()) -> dict:
    """Trains the experiment in `workdir`, or goes on where an earlier run of it stopped.

    Args:
      chosen: the experiment's config, after overrides.
      workdir: the folder that holds everything the run writes; made if missing.
      hints: lines printed at the end, such as the next commands.

    Returns:
      {"step": the last step, "stopped_by": a signal's name or "", and the last evaluation's means}.

    Raises:
      UserError: anything that the user can mend.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with WorkdirLock(workdir), contextlib.ExitStack() as stack:
        stop = stack.enter_context(listen())
        run = prepare(chosen, say=print)
        total = run.experiment.train.steps

        optimizer = make_optimizer(run.experiment.optimizer, total, run.param_shapes)
        abstract = states.abstract(
            run.model, optimizer, run.mesh, ema=run.experiment.optimizer.ema_decay > 0
        )
        checkpointer = Checkpointer(workdir / "checkpoints", run.experiment.checkpoint)
        stack.callback(checkpointer.close)
        restored = checkpointer.restore(
            abstract, run_config=run.config.to_dict(), ignore=FREE_ON_RESUME
        )
        if restored is None:
            warm_up()
            state = start.fresh(
                run.model, optimizer, abstract, seed=run.experiment.seed,
                init_from=run.experiment.train.init_from, say=print,
            )  # fmt: skip
        else:
            state, _ = restored
        first = int(state["step"])

        reporter = _reporter(run, workdir, first)
        stack.enter_context(reporter)
        run.dataset.tokenizer.save(workdir)
        reporter.parameters(run.param_shapes, describe(run.experiment.optimizer, run.param_shapes))
        if restored is not None:
            reporter.stage(f"resumes at step {first} of {total}")
        stack.enter_context(jax.set_mesh(run.mesh))
        if first < total:
            step_fn = _compile(run, optimizer, abstract, reporter)
            eval_fn = jax.jit(make_eval_step(run.loss_fn, seed=run.experiment.seed))
            state = _steps(run, state, first, step_fn, eval_fn, checkpointer, reporter, stop)
        else:
            reporter.stage(f"step {first} of {total}: nothing left to train")
        checkpointer.wait()
        if not stop and run.can_generate:
            for prompt, text in sample(run, state.get("ema", state["params"])):
                reporter.sample(int(state["step"]), prompt, text)
        reporter.finish(hints if not stop else (f"stopped by {stop.name}; run again to go on",))
        return {"step": int(state["step"]), "stopped_by": stop.name, **reporter.last_validation}


def _steps(
    run: Prepared,
    state: states.State,
    first: int,
    step_fn: Callable,
    eval_fn: Callable,
    checkpointer: Checkpointer,
    reporter: log.Reporter,
    stop: StopRequest,
) -> states.State:
    """The steps from `first` to the last, or until asked to stop; returns the state then."""
    settings, every = run.experiment.train, run.experiment.checkpoint.every
    schedule = make_schedule(run.experiment.optimizer, settings.steps)
    pending: list[tuple[int, Any]] = []  # metrics still on the device: reading them would wait

    def flush() -> None:
        for step, values in jax.device_get(pending):
            means = {name: float(total) / max(float(n), 1.0) for name, (total, n) in values.items()}
            means["learning_rate"] = float(schedule(step - 1))
            if means["skipped"] and settings.nonfinite == "abort":
                raise UserError(
                    f"step {step}: the loss is {means['loss']} and the gradient's norm "
                    f"{means['grad_norm']}; parameters are as before it. Lower "
                    "optimizer.learning_rate, or set train.nonfinite=skip to pass over such steps"
                )
            reporter.train(step, means)
        pending.clear()

    batches = data.prefetch(
        run.dataset.train, first, settings.steps, run.experiment.seed, run.batch_sharding
    )
    with contextlib.closing(batches):
        for index, batch in batches:
            if stop and index == first:
                break  # asked to stop before the first step: there is nothing to save
            state, values = step_fn(state, batch)
            step = index + 1
            pending.append((step, values))
            last, stopping = step == settings.steps, bool(stop)  # once: a signal may come below
            evaluating = last or bool(settings.eval_every and step % settings.eval_every == 0)
            saving = last or stopping or bool(every and step % every == 0)
            if saving or evaluating or index == first or step % settings.log_every == 0:
                flush()
            means = {}
            if evaluating:
                params = state.get("ema", state["params"])
                means = evaluate_split(run, eval_fn, params, settings.eval_tokens)
                reporter.validation(step, means)
            if saving:
                checkpointer.save(
                    step, state, run_config=run.config.to_dict(), metric=means.get("loss"),
                    force=last or stopping,
                )  # fmt: skip
            if settings.sample_every and step % settings.sample_every == 0 and run.can_generate:
                for prompt, text in sample(run, state.get("ema", state["params"])):
                    reporter.sample(step, prompt, text)
            if stopping:
                break
    return state


def evaluate_split(
    run: Prepared, eval_fn: Callable, params: Any, tokens: int = 0
) -> dict[str, float]:
    """Returns the means over the validation split, or `tokens` tokens spread over all of it."""
    split, every = run.dataset.validation, 1
    stop = split.num_batches
    if tokens:
        wanted = -(-tokens // (run.experiment.data.batch_size * run.experiment.data.seq_len))
        every = max(1, split.num_batches // wanted)
        stop = min(stop, every * wanted)
    batches = data.prefetch(split, 0, stop, run.experiment.seed, run.batch_sharding, every=every)
    with contextlib.closing(batches):
        return evaluate(
            eval_fn, params, batches, predicts_text=run.predicts_text,
            bytes_per_token=run.dataset.info.bytes_per_token,
        )  # fmt: skip


def _compile(run: Prepared, optimizer, abstract: states.State, reporter: log.Reporter) -> Callable:
    """Returns the compiled, donated step, told about while it is made."""
    reporter.stage("compiling…")
    begin = time.perf_counter()
    compiled = compile_train_step(
        run.experiment, run.loss_fn, optimizer, abstract, run.batch_shapes
    )
    reporter.stage(f"compiled in {time.perf_counter() - begin:.1f} s")
    return compiled


def _reporter(run: Prepared, workdir: Path, first: int) -> log.Reporter:
    reporter = log.Reporter(
        workdir,
        total_steps=run.experiment.train.steps,
        start_step=first,
        tokens_per_step=run.experiment.data.batch_size * run.experiment.data.seq_len,
        flops_per_token=metrics.flops_per_token(
            metrics.matmul_parameters(run.param_shapes),
            run.experiment.model,
            run.experiment.data.seq_len,
        ),
        peak_flops=metrics.peak_flops(jax.devices()),
        baseline=run.baseline,
        config=run.config.to_dict(),
    )
    reporter.environment(meshes.describe(run.mesh))
    return reporter
