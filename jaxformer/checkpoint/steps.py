"""The folder of checkpoints as it lies on the disk: which steps there are, what is written about
each of them, which may go. Nothing here imports Orbax: a start with nothing to restore needs none.

    checkpoints/300/params/... ema/... rest/...   arrays, by Orbax
    checkpoints/300/meta/metadata                 JSON: step, metric, run config, checksums
    checkpoints/200.damaged/                      set aside, never deleted by us
    checkpoints/400.orbax-checkpoint-tmp/         left by a killed save; the next save removes it
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from jaxformer.errors import UserError

_TEMPORARY = ".orbax-checkpoint-tmp"
_PRUNED = ".pruned"
_META = os.path.join("meta", "metadata")


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the message says what is wrong with it."""


def committed(directory: str) -> list[int]:
    """Returns the steps in a folder of checkpoints, oldest first; [] when there is no folder."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Orbax gives a step its name in the same instant in which it is complete (an atomic rename).
    return sorted(
        int(name)
        for name in names
        if name.isdecimal()
        and str(int(name)) == name
        and os.path.isdir(os.path.join(directory, name))
    )


def is_step(folder: str) -> bool:
    """Whether `folder` is one committed checkpoint."""
    return os.path.isfile(os.path.join(folder, _META))


def signed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `meta` as plain JSON values with a checksum of its own."""
    meta = json.loads(json.dumps(meta))
    return {**meta, "checksum": _digest(meta)}


def read_meta(folder: str) -> dict[str, Any]:
    """Reads what is written about a checkpoint.

    Raises:
      DamagedError: it is missing, cannot be read, or is not what was written.
    """
    try:
        with open(os.path.join(folder, _META), "rb") as file:
            meta = json.loads(file.read())
        checksum = meta.pop("checksum")
    except OSError as error:
        raise DamagedError(f"its meta/metadata cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError("its meta/metadata is not the JSON that was written") from None
    if checksum != _digest(meta):
        raise DamagedError("its meta/metadata does not match its checksum")
    return meta


def _digest(meta: Mapping[str, Any]) -> str:
    text = json.dumps(meta, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Iterable[str]) -> list[str]:
    """Compares two run configs.

    Args:
      old: the config in the checkpoint.
      new: the config of now.
      ignore: keys that may differ: "mesh." or "mesh.*" for a section, "train.steps" for one key.

    Returns:
      One phrase per differing key, e.g. "model.width: checkpoint 256, now 512".
    """
    before, after = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
    patterns = [pattern + "*" if pattern.endswith(".") else pattern for pattern in ignore]
    return [
        f"{key}: checkpoint {before.get(key, 'has none')}, now {after.get(key, 'none')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(fnmatchcase(key, pattern) for pattern in patterns)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat


def best_first(metrics: Mapping[int, float | None]) -> list[int]:
    """Returns the steps that have a metric, lowest first, and of equals the newest first."""
    scored = [(metric, -step) for step, metric in metrics.items() if metric is not None]
    return [-step for _, step in sorted(scored)]


def superfluous(metrics: Mapping[int, float | None], keep: int, keep_best: int) -> list[int]:
    """Returns the steps that are neither among the `keep` newest nor the `keep_best` best."""
    kept = set(sorted(metrics)[-keep:]) | set(best_first(metrics)[:keep_best])
    return sorted(set(metrics) - kept)


def usable_metric(metric: float | None) -> float | None:
    """Returns the metric as a float, or None when it can rank nothing (absent, NaN, infinite)."""
    return None if metric is None or not math.isfinite(metric) else float(metric)


def set_aside(directory: str, step: int) -> str:
    """Renames a damaged step to `<step>.damaged`, so that its number is free; returns the name."""
    name, count = f"{step}.damaged", 1
    while os.path.exists(os.path.join(directory, name)):
        count += 1
        name = f"{step}.damaged-{count}"
    os.rename(os.path.join(directory, str(step)), os.path.join(directory, name))
    return name


def delete(directory: str, step: int) -> None:
    """Deletes a step; killed in the middle of it, it leaves no half step behind."""
    pruned = os.path.join(directory, f"{step}{_PRUNED}")
    shutil.rmtree(pruned, ignore_errors=True)
    os.rename(os.path.join(directory, str(step)), pruned)
    shutil.rmtree(pruned, ignore_errors=True)


def sweep(directory: str) -> None:
    """Removes what killed or failed saves and deletions left behind."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if _TEMPORARY in name or name.endswith(_PRUNED):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def find(path: str) -> tuple[str, list[int]]:
    """Finds the checkpoints that a user means by a path.

    Args:
      path: a workdir, its folder of checkpoints, or the folder of one step.

    Returns:
      The folder of checkpoints and its steps, oldest first; for one step `(folder, [])`.

    Raises:
      UserError: there is no checkpoint.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if is_step(path):
        return path, []
    for directory in (os.path.join(path, "checkpoints"), path):
        if steps := committed(directory):
            return directory, steps
    why = "it does not exist" if not os.path.exists(path) else "no finished step is in it"
    raise UserError(
        f"no checkpoint in {path}: {why}; give a run's workdir, its checkpoints folder, or one step"
    )
