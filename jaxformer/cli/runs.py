"""Commands with an experiment: train, and evaluate a run or a published folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.cli.flags import MODEL, one_source, parse, required, restore, start_jax
from jaxformer.errors import UserError

if TYPE_CHECKING:
    from jaxformer.train.load import Loaded
    from jaxformer.train.prepare import Prepared


def train(words: list[str]) -> None:
    """Trains an experiment, or goes on where it stopped."""
    flags, assignments = parse(
        words, "--config", "--workdir", "--print_config", "--dry_run", "--require_platform"
    )
    path = required(flags, "config", "train", "experiments/quickstart.py")
    from jaxformer.train import overrides
    from jaxformer.train.experiment import build, fill

    chosen = overrides.apply(overrides.load(path), assignments)
    if flags["print_config"]:
        _print_config(fill(chosen))
        return
    source = build(chosen).train.init_from  # mistakes in the config are told before JAX starts
    start_jax(flags["require_platform"])
    if flags["dry_run"]:
        from jaxformer.train.dry_run import dry_run

        dry_run(chosen)
        return
    from jaxformer.interop import finite, is_published

    if is_published(source):
        finite.refuse(source)
    from jaxformer.train.loop import train

    workdir = flags["workdir"] or f"runs/{Path(path).stem}"
    train(chosen, workdir, hints=_next_commands(workdir, chosen))


def _next_commands(workdir: str, chosen: Any) -> tuple[str, ...]:
    speaks = chosen.get("objective", {}).get("name", "causal_lm") == "causal_lm"
    prompts = [str(p).strip() for p in chosen.get("generate", {}).get("prompts", ())]
    words = [f"jaxformer evaluate --workdir {workdir}"]
    if speaks:
        prompt = next(filter(None, prompts), "The")
        words.append(f"jaxformer generate --workdir {workdir} --prompt {prompt!r}")
    words.append(f"jaxformer visualize loss {workdir} --out loss.png")
    return tuple(words)


def evaluate(words: list[str]) -> None:
    """Prints the loss over the validation split, and the scores of the experiment's task."""
    flags, assignments = parse(words, *MODEL, "--metrics", "--out")
    if flags["out"] and Path(flags["out"]).exists():
        raise UserError(f"--out={flags['out']} is there already; nothing is overwritten")
    run, loaded = (_published if flags["from"] else _trained)(flags, assignments)
    import jax

    from jaxformer.evaluate import make_eval_step, tasks
    from jaxformer.parallel import rules
    from jaxformer.train.loop import evaluate_split

    params = jax.device_put(loaded.params, rules.shardings(loaded.params, run.mesh))
    with jax.set_mesh(run.mesh):
        step = jax.jit(make_eval_step(run.loss_fn, seed=run.experiment.seed))
        means = evaluate_split(run, step, params)
    info, read = run.dataset.info, run.experiment.data
    where = read.validation_source or f"validation split of {read.source}"
    print(
        f"{flags['from'] or flags['workdir']}: {where}, "
        f"{info.validation_tokens:,} tokens in {info.validation_documents:,} documents"
    )
    for name, value in means.items():
        print(f"  {name:<14} {value:.4f}")
    if run.experiment.goal not in tasks.TASKS:
        return
    asked = tuple((flags["metrics"] or "bleu,chrf").split(","))
    scores, examples = tasks.judge(
        run.experiment.goal, run.model, params, run.dataset, loaded.generate, text_metrics=asked,
        suppress_ids=loaded.suppress, first_id=loaded.first,
    )  # fmt: skip
    for name, value in scores.items():
        if name not in means:
            print(f"  {name:<14} {value:.4f}")
    if flags["out"]:
        with open(flags["out"], "x", encoding="utf-8") as file:
            for given, answer, right in examples:
                row = {"input": given, "output": answer, "reference": right}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"wrote {flags['out']}")


def _trained(flags: dict[str, Any], assignments: list[str]) -> tuple[Prepared, Loaded]:
    """Returns the run in --workdir, with its data."""
    chosen, params, workdir = restore(flags, assignments, "evaluate")
    from jaxformer.train.load import Loaded
    from jaxformer.train.prepare import prepare

    with chosen.unlocked():
        chosen.data.tokenizer = str(workdir)  # the run's own, whatever the data would give today
    run = prepare(chosen, say=print)
    writes, reads = run.experiment.generate, run.experiment.data
    return run, Loaded(run.model, params, run.dataset.tokenizer, writes, reads)


def _published(flags: dict[str, Any], assignments: list[str]) -> tuple[Prepared, Loaded]:
    """Returns the published checkpoint in --from, with the data of the experiment in --config."""
    folder = one_source(flags, "workdir", "checkpoint")
    path = required(flags, "config", "evaluate", f"experiments/sst2.py --from {folder}")
    start_jax(flags["require_platform"])
    from jaxformer.train import overrides, published

    return published.of_experiment(folder, overrides.load(path), assignments, say=print)


def _print_config(config: Any) -> None:
    for section, keys in config.to_dict().items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            print(f"--config.{section}{'.' if key else ''}{key}={value}")
