"""Holds the house in shape: who may import whom, how long a file gets, what it must tell.

Every rule is a function from (name, text) to a list of complaints, so that each can be shown, on a
few lines made for it, to complain.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# From top to bottom; a room imports only from itself and from rooms below it.
ROOMS = ["cli", "plan", "train", "evaluate", "generate", "checkpoint", "interop", "data"]
ROOMS += ["objectives", "models", "modules", "parallel", "ops", "config", "errors"]
ONLY = {  # rooms with a list of their own instead; all of them may use the standard library
    "ops": {"jax", "jaxformer.ops"},
    "visualize": {"numpy", "matplotlib", "jaxformer.visualize", "jaxformer.errors"},
    "config": {"jaxformer.errors", "ml_collections"},
    "errors": set(),
}
MAY_VISUALIZE = {"jaxformer.cli", "jaxformer.train.log"}
MAY_FLAX = ("jaxformer.modules", "jaxformer.models")
SLOW_TO_IMPORT = {"orbax", "matplotlib", "tensorboardX", "tokenizers", "datasets", "rich"}


def sources(*folders: str) -> list[Path]:
    """The Python files of these folders of the repository."""
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return sorted(path for path in files if "checkpoints" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, text: str, *, package: bool = False) -> Iterator[tuple[str, bool]]:
    """All modules that a text imports, in functions too, each with whether it is at the top."""
    tree = ast.parse(text)
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from jaxformer import ops` names a room, `from jaxformer.ops import x` need not.
            names = [f"jaxformer.{a.name}" for a in node.names] if base == "jaxformer" else [base]
            for name in names:
                yield name, id(node) in top


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def within(module: str, names: set[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def import_complaints(module: str, text: str, *, package: bool = False) -> list[str]:
    complaints = []
    here = room(module)
    for name, at_top in imports(module, text, package=package):
        there = room(name) if within(name, ("jaxformer",)) else ""
        complaint = f"{module} imports {name}"
        if here in ONLY:
            if name.split(".")[0] not in sys.stdlib_module_names and not within(name, ONLY[here]):
                complaints.append(f"{complaint}, but may import {sorted(ONLY[here])} only")
            continue
        if there == "visualize":
            if not within(module, MAY_VISUALIZE):
                complaints.append(f"{complaint}, which is for {sorted(MAY_VISUALIZE)}")
        elif there in ROOMS and here and ROOMS.index(there) < ROOMS.index(here):
            complaints.append(f"{complaint}: {there} lies above {here}")
        if within(name, ("flax",)) and not within(module, MAY_FLAX):
            complaints.append(f"{complaint}, which is for {MAY_FLAX}")
        if at_top and name.split(".")[0] in SLOW_TO_IMPORT:
            complaints.append(
                f"{complaint} at the top: import it where it is used, starts are slow"
            )
    return complaints


def test_imports_go_one_way():
    files = sources("jaxformer")
    assert {room(module_name(path)) for path in files} <= {*ROOMS, "visualize", ""}, "a new room?"
    assert [
        complaint
        for path in files
        for complaint in import_complaints(
            module_name(path), path.read_text(encoding="utf-8"), package=path.name == "__init__.py"
        )
    ] == []


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("jaxformer.data.cache", "from jaxformer.train import loop", "train lies above data"),
        ("jaxformer.data.cache", "def f():\n  from jaxformer import cli", "cli lies above data"),
        ("jaxformer.data.cache", "from ..models import x\nfrom ..evaluate import y", "evaluate"),
        ("jaxformer.ops.norms", "import numpy as np", "may import"),
        ("jaxformer.ops.norms", "from jaxformer.errors import UserError", "may import"),
        ("jaxformer.train.loop", "import flax.linen as nn", "which is for"),
        ("jaxformer.train.loop", "def f():\n  from jaxformer import visualize", "which is for"),
        ("jaxformer.visualize.loss", "import jax", "may import"),
        ("jaxformer.errors", "import jaxformer.config", "may import"),
        ("jaxformer.checkpoint.arrays", "import orbax.checkpoint as ocp", "at the top"),
    ],
)
def test_an_import_that_goes_the_other_way_is_named(module, text, words):
    [complaint] = import_complaints(module, text)
    assert words in complaint


def test_allowed_imports_pass():
    assert not import_complaints("jaxformer.train.log", "def f():\n  import rich\nimport jax")
    assert not import_complaints("jaxformer.ops.attention", "from .dense import x", package=True)
    assert not import_complaints("jaxformer.models.decoder", "import flax.linen as nn, math")


def length_complaints(lengths: dict[str, int]) -> list[str]:
    complaints = [f"{name}: {n} lines, over 400" for name, n in lengths.items() if n > 400]
    long = [name for name, n in lengths.items() if n > 300]
    if len(long) > len(lengths) / 10:
        complaints.append(f"more than a tenth of the files have over 300 lines: {long}")
    if lengths and statistics.median(lengths.values()) >= 200:
        complaints.append("half of the files have 200 lines or more")
    return complaints


def test_files_can_be_taken_in_at_a_glance():
    files = sources("jaxformer", "experiments", "tests")
    lengths = {
        str(p.relative_to(REPOSITORY)): len(p.read_text(encoding="utf-8").splitlines())
        for p in files
    }
    assert not length_complaints({n: k for n, k in lengths.items() if n.startswith("jaxformer/")})
    assert [name for name, n in lengths.items() if n > 400] == []


def test_long_files_are_named():
    short = {str(i): 100 for i in range(19)}
    assert not length_complaints(short | {"a": 301})
    assert length_complaints(short | {"a": 401}) == ["a: 401 lines, over 400"]
    assert "a tenth" in length_complaints(short | {"a": 301, "b": 301, "c": 301})[0]
    assert "half" in length_complaints({"a": 200})[0]


def experiment_complaints(name: str, text: str) -> list[str]:
    docstring = ast.get_docstring(ast.parse(text)) or ""
    wanted = {
        "a command": r"jaxformer \w+|launch/\w+\.\w+ \w+",
        "a time": r"\d[\d.,]* ?(s|seconds?|min|minutes?|h|hours?)\b",
        "a score": r"(loss|accuracy|perplexity|BLEU|F1)\D{0,40}\d+\.\d|\d ?(%|MiB|GiB|tokens/s)",
        "the hardware": r"core|CPU|GPU|TPU|H100|A100",
    }
    complaints = [f"{name}: its docstring lacks {what}" for what, pattern in wanted.items()
                  if not re.search(pattern, docstring)]  # fmt: skip
    if len(text.splitlines()) > 60:
        complaints.append(f"{name}: over 60 lines")
    if not re.search(r"^def get_config\(", text, re.MULTILINE):
        complaints.append(f"{name}: no get_config()")
    return complaints


def test_experiments_are_short_and_tell_what_they_give():
    files = sources("experiments")
    assert files
    assert [
        c
        for path in files
        for c in experiment_complaints(path.name, path.read_text(encoding="utf-8"))
    ] == []


def test_an_experiment_without_its_score_is_named():
    good = (
        '"""`launch/local.sh train x.py`: loss 1.5 in 4 minutes on 2 cores."""\ndef get_config():'
    )
    good += "\n  return 1\n"
    assert not experiment_complaints("x.py", good)
    for part in ("launch/local.sh train", "1.5", "4 minutes", "2 cores", "get_config"):
        assert len(experiment_complaints("x.py", good.replace(part, "soon"))) == 1, part
    assert experiment_complaints("x.py", good + "\n" * 60) == ["x.py: over 60 lines"]


def docstring_complaints(name: str, text: str) -> list[str]:
    return [f"{name}: {node.name} has no docstring"
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef)
            and not node.name.startswith("_") and not ast.get_docstring(node)]  # fmt: skip


def test_every_op_has_a_docstring():
    files = sources("jaxformer/ops")
    assert [
        c
        for path in files
        for c in docstring_complaints(module_name(path), path.read_text(encoding="utf-8"))
    ] == []


def test_an_op_without_docstring_is_named():
    text = 'def f():\n  "x"\ndef _g():\n  return 1\n'
    assert not docstring_complaints("ops.x", text)
    assert docstring_complaints("ops.x", text + "def h(): ...") == ["ops.x: h has no docstring"]
