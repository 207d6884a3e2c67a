"""The Reporter owns what a person sees of a run and what the run leaves in its folder."""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxformer.parallel.rules import path_name
from jaxformer.train import environment, records
from jaxformer.train.background import Background
from jaxformer.train.metrics import Meter

LINE_SECONDS = 5.0  # between lines when the output is no terminal
PICTURE_SECONDS = 30.0  # at least, between pictures of a run that goes on


class Reporter:
    """Prints and writes the progress of one run; to be used in a `with` block.

    Only process 0 prints and writes. metrics.jsonl holds floats in full and one consistent trace:
    what an earlier start of the run wrote beyond `start_step` is dropped.

    Args:
      workdir: an existing folder.
      total_steps: updates of the whole run.
      start_step: updates that are done already.
      tokens_per_step: in the global batch.
      flops_per_token: see metrics.flops_per_token.
      peak_flops: of all devices together, or None where it is not known: MFU is then "n/a".
      baseline: name and loss of what a model without context reaches, for the picture.
      config: written to config.json.
      quiet: write, but print nothing.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        start_step: int = 0,
        tokens_per_step: int,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        baseline: tuple[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ):
        self.workdir = Path(workdir)
        self.last_validation: dict[str, float] = {}
        self._main = jax.process_index() == 0
        self._quiet = quiet or not self._main
        self._total, self._start, self._tokens = total_steps, start_step, tokens_per_step
        self._flops, self._peak, self._baseline = flops_per_token, peak_flops, baseline
        self._step, self._loss = start_step, math.nan
        self._meter, self._begin = Meter(start_step), time.monotonic()
        self._bar: Any = None
        self._printed = self._drawn = -math.inf
        self._records: list[records.Record] = []
        if not self._main:
            return
        self._records = records.cut(self.workdir, start_step)
        validations = [r for r in self._records if r["split"] == "validation"]
        if validations:
            self.last_validation = _metrics(validations[-1])
        if config is not None:
            records.write_json(self.workdir / records.CONFIG, config)
        self._file = (self.workdir / records.METRICS).open("ab")
        self._background = Background(self.workdir / "tensorboard", start_step)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def environment(self, mesh: str) -> None:
        """Prints the environment in one line and writes environment.json."""
        if not self._main:
            return
        found = environment.collect(mesh)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        records.add_start(self.workdir, self._start, now, found)
        self._print(environment.one_line(found))

    def parameters(self, params: Any, notes: Mapping[str, str] | None = None) -> None:
        """Prints the parameter table; `notes` add a word to a parameter's row, by name."""
        self._print(parameter_table(params, notes))

    def stage(self, text: str) -> None:
        """Prints what happens now, or how long it took; its time does not count as training."""
        self._print(text)
        self._meter.resume()

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one step, counted from 1; shows it now and then."""
        self._meter.update(step)
        self._step, self._loss = step, metrics.get("loss", math.nan)
        self._record(step, "train", metrics)
        self._show(False)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records an evaluation, whose time does not count as training."""
        self._meter.resume()
        self.last_validation = dict(metrics)
        self._record(step, "validation", metrics)
        self._show(True)
        now = time.monotonic()
        if self._main and now - self._drawn > PICTURE_SECONDS and step < self._total:
            self._drawn = now
            snapshot = list(self._records)
            self._background.run(lambda: _draw(self.workdir, snapshot, self._baseline))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes to samples.txt what the model makes of the prompt, and prints it."""
        if step == self._step:
            self._meter.resume()
        if not self._main:
            return
        path, block = self.workdir / records.SAMPLES, records.sample_block(step, prompt, text)
        # A finished run that is started again makes its last sample again.
        if not path.exists() or block not in path.read_text(encoding="utf-8"):
            with path.open("a", encoding="utf-8") as file:
                file.write(block)
        self._background.add_text(step, f"{prompt}{text}")
        self._print(f"--- sample at step {step} ---\n{prompt}{text.rstrip()}\n---")

    def finish(self, lines: Iterable[str] = ()) -> None:
        """Ends the run's files and the display, with the last losses and the lines given."""
        self._close()
        if self._step > self._start:
            seconds = time.monotonic() - self._begin
            made = self._step - self._start
            self._print(f"step {self._step}/{self._total}: {made} steps in {_duration(seconds)}")
        self._print(f"loss.png, metrics.jsonl, samples.txt and tensorboard/ are in {self.workdir}")
        for line in lines:
            self._print(line)

    def _record(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if not self._main:
            return
        wall = {"seconds": time.monotonic() - self._begin}
        if split == "train" and self._meter.steps_per_second:
            wall["tokens_per_second"] = self._meter.steps_per_second * self._tokens
        record = {"step": step, "split": split, **metrics, "wall": wall}
        self._file.write(records.encode(record))
        self._file.flush()  # to the system, which survives us: a checkpoint may follow
        self._records.append(record)
        self._background.add_scalars(step, split, metrics)

    def _show(self, now: bool) -> None:
        if self._quiet:
            return
        if self._bar is None and sys.stdout.isatty():
            self._bar = _Bar(self._total)
        if self._bar is not None:
            self._bar.update(self._step, self._summary(step=False))
        elif now or time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            print(self._summary(), flush=True)

    def _summary(self, step: bool = True) -> str:
        parts = []
        if step:
            width = len(str(self._total))
            parts.append(f"step {self._step:>{width}}/{self._total}")
        parts.append(f"loss {self._loss:.4f}")
        if "loss" in self.last_validation:
            parts.append(f"validation {self.last_validation['loss']:.4f}")
        rate = self._meter.steps_per_second
        if rate:
            parts.append(f"{_short(rate * self._tokens)} tokens/s")
            parts.append(f"ETA {_duration((self._total - self._step) / rate)}")
        mfu = "n/a"
        if rate and self._peak and self._flops:
            mfu = f"{100 * rate * self._tokens * self._flops / self._peak:.1f} %"
        return "  ".join((*parts, f"MFU {mfu}"))

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True) if self._bar is None else self._bar.print(text)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._main and not self._file.closed:
            if self._records:
                self._background.run(lambda: _draw(self.workdir, self._records, self._baseline))
            self._background.close()
            self._file.close()


class _Bar:
    """A progress bar at the foot of the terminal."""

    def __init__(self, total: int):
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}", markup=False),
            refresh_per_second=4,
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=total)

    def update(self, step: int, words: str) -> None:
        self._progress.update(self._task, completed=step, description=words)

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def parameter_table(params: Any, notes: Mapping[str, str] | None = None) -> str:
    """Returns the table of all parameters: path, shape, count, bytes, and the total.

    Args:
      params: nested dict of arrays or shapes.
      notes: a word for a parameter's row, by name, such as optimizer.describe gives.
    """
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, count = path_name(path), math.prod(leaf.shape)
        shape = f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
        rows.append((name, shape, count, count * leaf.dtype.itemsize, (notes or {}).get(name, "")))
    count, size = sum(row[2] for row in rows), sum(row[3] for row in rows)
    cells = [("parameter", "shape", "count", "bytes", "")]
    cells += [(name, shape, f"{c:,}", _bytes(b), note) for name, shape, c, b, note in rows]
    cells += [("total", "", f"{count:,}", _bytes(size), "")]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
        for a, b, c, d, e in cells
    )


def _draw(workdir: Path, found: list[records.Record], baseline: tuple[str, float] | None) -> Path:
    from jaxformer.visualize import loss_curves, loss_label

    resumes, label = records.read_resumes(workdir), loss_label(records.read_config(workdir))
    figure = loss_curves(
        {workdir.name: found}, baseline=baseline, resumes=tuple(resumes), ylabel=label
    )
    path, temporary = workdir / "loss.png", workdir / ".loss.tmp.png"
    figure.savefig(temporary)
    return temporary.replace(path)


def _metrics(record: records.Record) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in ("step", "split", "wall")}


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
