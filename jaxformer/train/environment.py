"""What a run ran on: versions, devices, host, commit and command, without secrets."""

from __future__ import annotations

import collections
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import jaxformer

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")


def collect(mesh: str) -> dict[str, Any]:
    """Returns the environment as plain JSON values.

    Args:
      mesh: the mesh in words, e.g. "data=8 fsdp=1 tensor=1".
    """
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "jaxformer": jaxformer.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": jax.default_backend(),
        "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
        "processes": jax.process_count(),
        "mesh": mesh,
        "host": platform.node(),
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": [hide_secrets(word) for word in sys.argv],
    }


def one_line(environment: dict[str, Any]) -> str:
    """Returns the environment as the line that is printed first."""
    return " · ".join(
        (
            f"jaxformer {environment['jaxformer']}",
            f"jax {environment['versions'].get('jax', '?')}",
            f"Python {environment['python']}",
            f"{', '.join(environment['devices'])} ({environment['cpu_cores']} host cores)",
            f"mesh {environment['mesh']}",
        )
    )


def hide_secrets(word: str) -> str:
    """Returns a word of the command line with the values of passwords, tokens and keys hidden."""
    return re.sub(r"(?i)((?:token|secret|password|api_?key)=).+", r"\1***", word)


def commit() -> str | None:
    """Returns the git commit of the checkout that the package runs from, if it is one."""
    root = Path(jaxformer.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=2
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
