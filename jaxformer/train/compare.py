"""Ways to attend against each other: on tasks at equal parameters, and what they cost over length.

The experiment file says what is compared, in plain constants beside get_config():

| constant | holds |
|---|---|
| VARIANTS | name: model.attention |
| TASKS | name: the changes that make the config this task's, ("data.seq_len=512", ...) |
| LENGTHS | at which a step's time and memory are measured |
| MEMORY | bytes; a step that needs more is not run |

The first variant sets the number of parameters; the others' feed-forward layers are as wide as that
leaves (see cost.equalled). Costs over length are those of a row a device at the config's own width:
what a variant learns for each position (Linformer) would leave a small model nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxformer.errors import UserError, one_of
from jaxformer.train import cost, overrides, records
from jaxformer.train.compared import Row, told
from jaxformer.train.experiment import build
from jaxformer.train.loop import train
from jaxformer.train.prepare import prepare

RESULTS, ASKED = "results.jsonl", "compare.json"
SHORTEST = 32  # tokens at which a cost can be measured


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared; see the constants above. `chosen_*` are the parts asked for now."""

    base: ConfigDict
    variants: dict[str, str]
    tasks: dict[str, tuple[str, ...]]
    lengths: tuple[int, ...]
    memory: int
    chosen_variants: tuple[str, ...]
    chosen_tasks: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The variant whose number of parameters all have."""
        return next(iter(self.variants.values()))


def load(
    path: str | Path,
    assignments: Sequence[str] = (),
    *,
    variants: str = "",
    tasks: str = "",
    lengths: Sequence[int] | None = None,
) -> Comparison:
    """Returns what an experiment file compares, or the parts of it that are asked for.

    Args:
      path: the experiment.
      assignments: changes to its config, before those of the tasks.
      variants: names with commas between them; "file.py:function" is a researcher's own. "": all.
      tasks: names with commas between them; "": all.
      lengths: instead of LENGTHS.

    Raises:
      UserError: the file lacks a constant, or a name is not among them.
    """
    module = overrides.open_file(path)
    for name in ("get_config", "VARIANTS", "TASKS", "LENGTHS", "MEMORY"):
        if not hasattr(module, name):
            raise UserError(
                f"--config={path} has no {name}; compare needs get_config(), VARIANTS, TASKS, "
                "LENGTHS and MEMORY, as experiments/attention_shootout.py has"
            )
    base = overrides.apply(overrides.load(path), list(assignments))
    known = dict(module.VARIANTS)
    # A comma within parentheses parts a variant's arguments.
    picked = [name.strip() for name in re.split(r",(?![^(]*\))", variants) if name.strip()]
    for name in picked:
        if name not in known and ":" in name:
            known[name.rpartition(":")[2]] = name
    picked = [n.rpartition(":")[2] if n not in module.VARIANTS else n for n in picked]
    picked_tasks = [name.strip() for name in tasks.split(",") if name.strip()]
    for name in picked:
        one_of(name, known, "--variants")
    for name in picked_tasks:
        one_of(name, module.TASKS, "--tasks")
    lengths = tuple(module.LENGTHS if lengths is None else lengths)
    if any(length < SHORTEST for length in lengths):
        raise UserError(f"--lengths: {min(lengths)} is too short; give {SHORTEST} tokens or more")
    return Comparison(
        base, known, {name: tuple(changes) for name, changes in module.TASKS.items()}, lengths,
        int(module.MEMORY), tuple(picked or known), tuple(picked_tasks or module.TASKS),
    )  # fmt: skip


def run(asked: Comparison, out: str | Path, *, say: Callable[[str], None] = print) -> list[Row]:
    """Trains and measures what `out` does not hold yet; returns all its rows.

    Each training has a folder, out/TASK/VARIANT, and goes on there where it was stopped. A row that
    failed says why and is tried again by the next call.

    Raises:
      UserError: `out` holds another comparison.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _check_folder(asked, out)
    results = out / RESULTS
    if results.exists() and not results.read_bytes().endswith(b"\n"):
        with results.open("ab") as file:
            file.write(b"\n")  # a crash tore the last line; the next must not be lost with it
    done = {_key(row): row for row in read(out) if "error" not in row}
    for key, make in _jobs(asked, out):
        if key in done:
            continue
        begin = time.monotonic()
        row: Row = dict(zip(("part", "task", "variant", "length"), key, strict=True))
        row["attention"] = asked.variants[key[2]]
        try:
            row |= make()
        except cost.TooLargeError as error:
            row["skipped"] = str(error)
        except Exception as error:  # one variant's mistake must not stop the others
            words = str(error).strip() or "no reason given"
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            row["error"] = f"{kind}{words.splitlines()[0]}"[:300]
        row["seconds"] = time.monotonic() - begin
        with results.open("ab") as file:
            file.write(records.encode(row))
        say(told(row))
        jax.clear_caches()  # dozens of programs would fill the process's memory map
    return read(out)


def read(out: str | Path) -> list[Row]:
    """Returns the rows of a comparison's folder, the latest of each; a torn line is passed over."""
    path = Path(out) / RESULTS
    rows: dict[tuple, Row] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows[_key(row)] = row
    return list(rows.values())


def _key(row: Row) -> tuple[str, str, str, int]:
    return row["part"], row["task"], row["variant"], row["length"]


def _check_folder(asked: Comparison, out: Path) -> None:
    """Raises UserError if rows there are of another config; writes what is compared."""
    path = out / ASKED
    wanted = {"config": asked.base.to_dict(), "tasks": asked.tasks, "variants": asked.variants}
    wanted = json.loads(json.dumps(wanted, default=list))
    if path.exists():
        found = json.loads(path.read_bytes())
        for part in wanted:
            both = found[part].keys() & wanted[part].keys()
            # Variants and tasks may be added; a config is one whole.
            both = found[part].keys() | wanted[part].keys() if part == "config" else both
            for name in sorted(both):
                if found[part].get(name) != wanted[part].get(name):
                    raise UserError(
                        f"--out={out} holds a comparison with another {part}, at {name!r}; give "
                        "another folder"
                    )
            wanted[part] = {**found[part], **wanted[part]}
    records.write_json(path, wanted)


def _jobs(
    asked: Comparison, out: Path
) -> Iterator[tuple[tuple[str, str, str, int], Callable[[], Row]]]:
    """Yields each row's key with what makes the rest of it."""
    for task in asked.chosen_tasks:
        for name in asked.chosen_variants:
            length = build(_chosen(asked, task, asked.reference)).data.seq_len
            workdir = out / task / name
            make = functools.partial(_score, asked, task, name, workdir)
            yield ("score", task, name, length), make
    for name in asked.chosen_variants:
        for length in sorted(asked.lengths):
            yield ("cost", "", name, length), functools.partial(_cost, asked, name, length)


def _chosen(asked: Comparison, task: str, attention: str) -> ConfigDict:
    return overrides.apply(asked.base, [*asked.tasks[task], f"model.attention={attention}"])


def _score(asked: Comparison, task: str, name: str, workdir: Path) -> Row:
    """Trains a variant on a task; returns what came of it."""
    reference = prepare(_chosen(asked, task, asked.reference), say=lambda line: None)
    info = reference.dataset.info
    wanted = cost.parameters(reference.config, info)
    chosen = cost.equalled(_chosen(asked, task, asked.variants[name]), info, wanted)
    ready = prepare(chosen, say=lambda line: None)
    memory = cost.measure(ready, limit=asked.memory, steps=0).memory_bytes
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        stopped = train(chosen, workdir)["stopped_by"]
    if stopped:
        raise KeyboardInterrupt(stopped)
    scores = records.read_records(workdir, "validation")[-1]
    labels = np.concatenate(
        [ready.dataset.validation.batch(i)["labels"]
         for i in range(ready.dataset.validation.num_batches)]
    )  # fmt: skip
    data = ready.experiment.data
    wall = records.read_records(workdir, "train")[-1]["wall"]
    if "tokens_per_second" in wall:
        seconds = data.batch_size * data.seq_len / wall["tokens_per_second"]
    else:  # too few steps to tell
        seconds = cost.measure(ready, limit=asked.memory).step_seconds
    if not np.isfinite(scores["loss"]):
        raise FloatingPointError(f"the loss is {scores['loss']}")
    return {
        "parameters": cost.parameters(chosen, info),
        "feed_forward": ready.experiment.model.feed_forward_width,
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "largest_class": float(np.bincount(labels[labels >= 0]).max() / (labels >= 0).sum()),
        "memory_bytes": memory,
        "step_seconds": seconds,
    }


def _cost(asked: Comparison, name: str, length: int) -> Row:
    """Measures a variant's step at a length, on rows of the needle's texts."""
    rows = len(jax.devices())
    changes = (
        f"data.source=needle:{rows * 4 + 32}:{length - 2}", "data.labels=field",
        "data.layout=padded", "data.tokenizer=char", "data.validation_fraction=0.5",
        f"data.seq_len={length}", f"model.max_length={length}", f"data.batch_size={rows}",
        f"model.attention={asked.variants[name]}",
    )  # fmt: skip
    ready = prepare(overrides.apply(asked.base, list(changes)), say=lambda line: None)
    found = cost.measure(ready, limit=asked.memory)
    return {"parameters": cost.parameters(ready.config, ready.dataset.info), **found._asdict()}
