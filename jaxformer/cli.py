"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError, suggest

USAGE = """jaxformer COMMAND [flags] [--config.SECTION.KEY=VALUE ...]

  train      --config experiments/x.py [--workdir runs/x]   train, or go on where it stopped
  evaluate   --workdir runs/x [--out texts.jsonl]           loss over the whole validation split,
                                                            and what its task is judged by
  generate   --workdir runs/x --prompt TEXT                 text, as it is written
  visualize  loss runs/x [runs/y ...] --out loss.png        loss curves of one or several runs
  visualize  attention --workdir runs/x --text TEXT --out attention.png
  convert    --from DIR --to DIR                            a published checkpoint, or a run, to
                                                            one that transformers loads

flags
  --config FILE             the experiment; evaluate and generate read the run's own by default
  --config.SECTION.KEY=V    changes one key of it; --print_config shows them all
  --workdir DIR             the run's folder; for train runs/NAME by default
  --metrics NAMES           of written texts: bleu,chrf (default), rouge
  --checkpoint WHICH        latest (default), best, or a step's number
  --prompt TEXT             may be given several times
  --print_config            print the whole config and end
  --dry_run                 print shapes, parameters and memory, and end
  --require_platform NAME   end at once unless JAX runs on cpu, gpu or tpu
  --debug                   show the traceback of an error
"""
COMMANDS = ("train", "evaluate", "generate", "visualize", "convert")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(USAGE, end="")
            return 0
        commands: dict[str, Callable[[list[str]], None]] = {
            "train": _train, "evaluate": _evaluate, "generate": _generate, "visualize": _visualize,
            "convert": _convert,
        }  # fmt: skip
        if argv[0] not in commands:
            raise UserError(
                f"{argv[0]!r} is not a command{suggest(argv[0], COMMANDS)}; "
                f"valid: {', '.join(COMMANDS)}"
            )
        if {"-h", "--help"} & set(argv):
            print(USAGE, end="")
            return 0
        commands[argv[0]]([word for word in argv[1:] if word != "--debug"])
        return 0
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(words: list[str], *flags: str, places: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Returns the flags' values and the config's overrides, or raises on any other word."""
    switches = {"--print_config", "--dry_run"}
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for flag in flags:
        if flag in switches:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, action="append" if flag == "--prompt" else "store")
    assignments = [word for word in words if word.startswith("--config.")]
    rest = [word for word in words if not word.startswith("--config.")]
    try:
        values, stray = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name or ''} {error.message}".strip()) from None
    for word in stray[places:] if not any(w.startswith("-") for w in stray[:places]) else stray:
        name = word.partition("=")[0]
        raise UserError(
            f"{word!r} is not understood{suggest(name, flags)}; flags: {', '.join(flags)}, and "
            "--config.SECTION.KEY=VALUE"
        )
    values.places = stray[:places]
    return vars(values), [word.removeprefix("--config.") for word in assignments]


def _start_jax(require_platform: str | None) -> None:
    """Turns the persistent compilation cache on, so that a second start compiles nothing."""
    import jax

    from jaxformer.train.memory import keep_freed_memory

    accelerators = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio", "/dev/kfd")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(os.path.exists, accelerators)):
        keep_freed_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        from jaxformer.data import Config

        folder = Config().cache_folder().parent / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if require_platform:
        try:
            found = jax.default_backend()
        except RuntimeError as error:
            raise UserError(f"--require_platform={require_platform}: {error}") from None
        if found != require_platform:
            raise UserError(
                f"--require_platform={require_platform}, but JAX runs on {found}; install "
                'what brings it: pip install "jaxformer[cuda]" or "jaxformer[tpu]"'
            )


def _train(words: list[str]) -> None:
    flags, assignments = _parse(
        words, "--config", "--workdir", "--print_config", "--dry_run", "--require_platform"
    )
    path = _required(flags, "config", "train", "experiments/quickstart.py")
    from jaxformer.train import overrides
    from jaxformer.train.experiment import build, fill

    chosen = overrides.apply(overrides.load(path), assignments)
    if flags["print_config"]:
        _print_config(fill(chosen))
        return
    build(chosen)  # mistakes in the config are told before JAX starts
    _start_jax(flags["require_platform"])
    if flags["dry_run"]:
        from jaxformer.train.dry_run import dry_run

        dry_run(chosen)
        return
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


def _restore(flags: dict[str, Any], assignments: list[str], command: str) -> tuple[Any, Any, Path]:
    """Returns (config with overrides, parameters, workdir) of the run in --workdir."""
    from ml_collections import ConfigDict

    from jaxformer.checkpoint import restore_params
    from jaxformer.train import overrides
    from jaxformer.train.experiment import build

    workdir = Path(_required(flags, "workdir", command, "runs/quickstart"))
    if not workdir.is_dir():
        near = [str(folder) for folder in workdir.parent.glob("*")]
        raise UserError(f"--workdir={workdir}: no such folder{suggest(str(workdir), near)}")
    which = flags["checkpoint"] or "latest"
    if not which.isdigit() and which not in ("latest", "best"):
        raise UserError(f"--checkpoint={which}: give latest, best, or a step's number")
    _start_jax(flags["require_platform"])
    params, saved = restore_params(workdir, step=int(which) if which.isdigit() else which)
    chosen = overrides.load(flags["config"]) if flags["config"] else ConfigDict(saved)
    chosen = overrides.apply(chosen, assignments)
    build(chosen)
    return chosen, params, workdir


_RUN_FLAGS = ("--config", "--workdir", "--checkpoint", "--require_platform")


def _evaluate(words: list[str]) -> None:
    flags, assignments = _parse(words, *_RUN_FLAGS, "--metrics", "--out")
    chosen, params, workdir = _restore(flags, assignments, "evaluate")
    import jax

    from jaxformer.evaluate import make_eval_step, tasks
    from jaxformer.parallel import rules
    from jaxformer.train.loop import evaluate_split
    from jaxformer.train.prepare import prepare

    with chosen.unlocked():
        chosen.data.tokenizer = str(workdir)  # the run's own, whatever the data would give today
    run = prepare(chosen, say=print)
    params = jax.device_put(params, rules.shardings(params, run.mesh))
    with jax.set_mesh(run.mesh):
        step = jax.jit(make_eval_step(run.loss_fn, seed=run.experiment.seed))
        means = evaluate_split(run, step, params)
    info, read = run.dataset.info, run.experiment.data
    where = read.validation_source or f"validation split of {read.source}"
    print(
        f"{workdir}: {where}, "
        f"{info.validation_tokens:,} tokens in {info.validation_documents:,} documents"
    )
    for name, value in means.items():
        print(f"  {name:<14} {value:.4f}")
    if run.experiment.goal not in tasks.TASKS:
        return
    asked = tuple((flags["metrics"] or "bleu,chrf").split(","))
    scores, examples = tasks.judge(
        run.experiment.goal, run.model, params, run.dataset, run.experiment.generate,
        text_metrics=asked,
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


def _generate(words: list[str]) -> None:
    flags, assignments = _parse(words, *_RUN_FLAGS, "--prompt")
    chosen, params, workdir = _restore(flags, assignments, "generate")
    from jaxformer.train.sample import Speaker

    speaker = Speaker.of_run(chosen, workdir)
    prompts = tuple(flags["prompt"] or speaker.config.prompts)
    show = len(prompts) == 1
    between = "" if speaker.model.encode is None else "\n"  # a translation does not go on
    if show:
        print(prompts[0], end=between, flush=True)
    texts = speaker.write(
        params, prompts, stream=lambda row, text: print(text, end="", flush=True) if show else None
    )
    if show:
        print()
    else:
        for prompt, text in zip(prompts, texts, strict=True):
            print(f"--- {prompt!r}\n{prompt}{between}{text}\n")


def _visualize(words: list[str]) -> None:
    kinds = ("loss", "attention")
    if not words or words[0] not in kinds:
        given = words[0] if words else ""
        raise UserError(
            f"visualize {given!r}: give one of {', '.join(kinds)}{suggest(given, kinds)}"
        )
    from jaxformer.visualize import attention_maps, loss_curves

    if words[0] == "loss":
        from jaxformer.train.records import read_records, read_resumes

        flags, _ = _parse(words[1:], "--out", places=len(words))
        if not flags["places"]:
            raise UserError("visualize loss needs a run; e.g. jaxformer visualize loss runs/x")
        records = {name: read_records(name) for name in flags["places"]}
        for name, found in records.items():
            if not found:
                raise UserError(f"visualize loss {name}: no metrics.jsonl there; give a workdir")
        alone = flags["places"][0] if len(records) == 1 else None
        resumes = tuple(read_resumes(alone)) if alone else ()
        figure, out = loss_curves(records, resumes=resumes), flags["out"] or "loss.png"
    else:
        flags, assignments = _parse(words[1:], *_RUN_FLAGS, "--text", "--out")
        text = _required(flags, "text", "visualize attention", "TEXT")
        chosen, params, workdir = _restore(flags, assignments, "visualize attention")
        from jaxformer.train.sample import Speaker

        weights_LNTS, tokens = Speaker.of_run(chosen, workdir).attention(params, text)
        figure, out = attention_maps(weights_LNTS, tokens), flags["out"] or "attention.png"
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


def _convert(words: list[str]) -> None:
    flags, changes = _parse(words, "--from", "--to", "--checkpoint", "--require_platform")
    if changes:
        raise UserError(f"convert changes no key; leave out --config.{changes[0]}")
    source = Path(_required(flags, "from", "convert", "DIR --to NEW"))
    target = Path(_required(flags, "to", "convert", "NEW --from DIR"))
    if not (source / "checkpoints").is_dir():
        _start_jax(flags["require_platform"])
        from jaxformer import interop

        interop.convert(source, target)
        return
    import time

    from jaxformer import data, interop
    from jaxformer.interop import refuse_existing
    from jaxformer.models import FAMILIES
    from jaxformer.train.experiment import build

    start = time.perf_counter()
    refuse_existing(target)
    chosen, params, _ = _restore({**flags, "workdir": str(source), "config": None}, [], "convert")
    experiment = build(chosen)
    model = FAMILIES[experiment.family].make(experiment.model)
    interop.export(target, model, params, data.load_tokenizer(source), start=start)


def _print_config(config: Any) -> None:
    for section, keys in config.to_dict().items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            print(f"--config.{section}{'.' if key else ''}{key}={value}")


def _required(flags: dict[str, Any], name: str, command: str, example: str) -> str:
    if not flags[name]:
        raise UserError(f"{command} needs --{name}; e.g. jaxformer {command} --{name} {example}")
    return flags[name]


if __name__ == "__main__":
    sys.exit(main())
