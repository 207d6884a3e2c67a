"""The words after a command: its flags, the changes to a config, and what they ask to load."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.errors import UserError, suggest

if TYPE_CHECKING:
    from jaxformer.train.load import Loaded

RUN = ("--config", "--workdir", "--checkpoint", "--require_platform")
MODEL = ("--from", *RUN)  # of a run, or of a published folder
_SWITCHES = {"--print_config", "--dry_run", "--normalize"}
_NUMBERS = {"--stride", "--max_length", "--batch_size", "--max_tokens", "--neighbours",
            "--words", "--top"}  # fmt: skip


def parse(words: list[str], *flags: str, places: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Returns the flags' values and the config's changes.

    Raises:
      UserError: any other word, or a flag without its value.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for flag in flags:
        if flag in _SWITCHES:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, action="append" if flag == "--prompt" else "store")
    assignments = [word for word in words if word.startswith("--config.")]
    rest = [word for word in words if not word.startswith("--config.")]
    try:
        values, stray = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name or ''} {error.message}".strip()) from None
    for word in [word for word in stray if word.startswith("-")] or stray[places:]:
        name = word.partition("=")[0]
        raise UserError(
            f"{word!r} is not understood{suggest(name, flags)}; flags: {', '.join(flags)}, and "
            "--config.SECTION.KEY=VALUE"
        )
    found = vars(values)
    for flag in _NUMBERS.intersection(flags):
        found[flag[2:]] = _whole(flag, found[flag[2:]])
    found["places"] = stray[:places]
    return found, [word.removeprefix("--config.") for word in assignments]


def _whole(flag: str, text: str | None) -> int:
    """Returns the number of a flag, 0 for one that was not given."""
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"{flag}={text}: give a whole number from 1 on")
    return int(text)


def numbers(flags: dict[str, Any], name: str) -> tuple[float, ...]:
    """Returns the numbers, with commas between them, of a flag; none for one that was not given."""
    text = flags[name]
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"--{name}={text}: give numbers such as 0,0.25,0.5") from None


def required(flags: dict[str, Any], name: str, command: str, example: str) -> str:
    """Returns the value of a flag that the command cannot do without.

    Raises:
      UserError: it was not given.
    """
    if not flags[name]:
        raise UserError(f"{command} needs --{name}; e.g. jaxformer {command} --{name} {example}")
    return flags[name]


def start_jax(require_platform: str | None) -> None:
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


def restore(flags: dict[str, Any], assignments: list[str], command: str) -> tuple[Any, Any, Path]:
    """Returns (config with its changes, parameters, workdir) of the run in --workdir.

    Raises:
      UserError: there is no such run or checkpoint, or a change that does not fit.
    """
    workdir = Path(required(flags, "workdir", command, "runs/quickstart"))
    if not workdir.is_dir():
        near = [str(folder) for folder in workdir.parent.glob("*")]
        raise UserError(f"--workdir={workdir}: no such folder{suggest(str(workdir), near)}")
    which = flags["checkpoint"] or "latest"
    if not which.isdigit() and which not in ("latest", "best"):
        raise UserError(f"--checkpoint={which}: give latest, best, or a step's number")
    start_jax(flags["require_platform"])
    from ml_collections import ConfigDict

    from jaxformer.checkpoint import restore_params
    from jaxformer.train import overrides
    from jaxformer.train.experiment import build

    params, saved = restore_params(workdir, step=int(which) if which.isdigit() else which)
    chosen = overrides.load(flags["config"]) if flags["config"] else ConfigDict(saved)
    chosen = overrides.apply(chosen, assignments)
    build(chosen)
    return chosen, params, workdir


def load(flags: dict[str, Any], assignments: list[str], command: str) -> Loaded:
    """Returns the model of the published folder in --from, or of the run in --workdir.

    Raises:
      UserError: neither or both are given, or what is there cannot be used.
    """
    folder = flags["from"]
    if not folder and not flags["workdir"]:
        raise UserError(
            f"{command} needs --workdir, a run, or --from, the folder of a published checkpoint; "
            f"e.g. jaxformer {command} --workdir runs/quickstart"
        )
    if not folder:
        chosen, params, workdir = restore(flags, assignments, command)
        from jaxformer.train import load as loading

        return loading.of_run(chosen, params, workdir)
    source = one_source(flags, "workdir", "config", "checkpoint")
    start_jax(flags["require_platform"])
    from jaxformer.train import load as loading

    return loading.of_folder(source, assignments)


def one_source(flags: dict[str, Any], *others: str) -> Path:
    """Returns the published folder in --from.

    Raises:
      UserError: one of the `others` is given too, or the folder is a run's.
    """
    folder = flags["from"]
    for name in others:
        if flags[name]:
            raise UserError(
                f"--from={folder} and --{name}={flags[name]}: a published folder is all there is; "
                f"leave --{name} out"
            )
    if (Path(folder) / "checkpoints").is_dir():
        raise UserError(f"--from={folder} is a run's folder; give --workdir={folder}")
    return Path(folder)
