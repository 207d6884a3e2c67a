"""Saving and resuming: what to write, what to trust, what to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxformer.checkpoint import arrays, steps
from jaxformer.checkpoint.checksums import checksums
from jaxformer.checkpoint.steps import DamagedError
from jaxformer.errors import UserError


@dataclass(frozen=True)
class Config:
    """When to save and what to keep.

    Attributes:
      every: steps between saves; 0 saves only when forced (at the end, on a signal).
      keep: how many of the newest checkpoints to keep.
      keep_best: how many of those with the lowest validation loss to keep besides; 0 = none.
      asynchronous: write while training goes on.
    """

    every: int = 500
    keep: int = 2
    keep_best: int = 1
    asynchronous: bool = True

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("keep", 1), ("keep_best", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"checkpoint.{name} is {value}; it must be at least {least}")


class Checkpointer:
    """The checkpoints of one run.

    Reading changes nothing on the disk. One process (or one run of several) writes at a time: hold
    a `WorkdirLock`.

    Args:
      directory: the folder of checkpoints, on a disk that all processes see.
      config: see `Config`.
      say: prints one line for the user.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Config | None = None,
        say: Callable[[str], None] = print,
    ):
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self.config = config or Config()
        self._say = say
        self._opened: Any = None
        self._writing: int | None = None
        self._damaged: set[int] = set()
        self._metrics: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """Returns the finished steps, oldest first; does not import Orbax."""
        return steps.committed(self.directory)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        run_config: Mapping[str, Any],
        metric: float | None = None,
        force: bool = False,
    ) -> bool:
        """Saves the state if it is time; the state may be donated as soon as this returns.

        Args:
          step: number of finished steps.
          state: `{"params": ..., ["ema": ...], ...}`, trees of jax arrays, in any sharding.
          run_config: the whole config, for the comparison on resume; JSON values.
          metric: the validation loss at this step, for `keep_best`.
          force: save whatever `every` says.

        Returns:
          Whether a save was started. One that fails (a full disk) is told in a line by the next
          save, and the run goes on.

        Raises:
          UserError: a forced save cannot be started.
        """
        if not force and (not self.config.every or step % self.config.every):
            return False
        self._settle(failing=self._report)
        if step in self.steps() and step not in self._damaged:
            return False
        self._metrics.pop(step, None)
        meta = {
            "step": step,
            "metric": steps.usable_metric(metric),
            "run_config": run_config,
            "leaves": checksums(state),
        }
        try:
            os.makedirs(self.directory, exist_ok=True)
            if jax.process_index() == 0:
                self._make_room()
            arrays.write(self._orbax(), self._folder(step), state, steps.signed(meta))
        except OSError as error:
            (self._fail if force else self._report)(step, error)
            return False
        self._writing = step
        if not self.config.asynchronous:
            self.wait()
        return True

    def restore(
        self,
        abstract_state: Mapping[str, Any],
        *,
        run_config: Mapping[str, Any] | None = None,
        ignore: Iterable[str] = (),
    ) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest step that is as it was saved.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct` (or arrays) with the shardings that
            the restored one shall have, on whatever mesh.
          run_config: the config of now, to be compared with the saved one; None compares nothing.
          ignore: keys that may differ: "mesh." or "mesh.*" for a section, "train.steps" for a key.

        Returns:
          The state and its meta (`step`, `metric`, `run_config`), or None when nothing was saved.

        Raises:
          UserError: another config, other shapes, or no step is intact. Nothing is deleted.
        """
        abstract = arrays.abstract_of(dict(abstract_state))

        def accept(meta: dict[str, Any]) -> Any:
            if run_config is not None:
                arrays.refuse(
                    steps.differences(meta["run_config"], run_config, ignore), self.directory
                )
            arrays.refuse(arrays.misfits(abstract, meta), self.directory)
            return abstract

        self._settle(failing=self._report)
        candidates = self.steps()
        if not candidates:
            return None
        folders = {step: self._folder(step) for step in reversed(candidates)}
        state, meta, self._damaged = arrays.first_intact(folders, accept, self._orbax, self._say)
        return state, meta

    def wait(self) -> None:
        """Returns when the last save is on the disk and superfluous steps are deleted.

        Raises:
          UserError: it could not be written.
        """
        self._settle(failing=self._fail)

    def close(self) -> None:
        """Waits as `wait` does, and ends Orbax's threads; call it before the program ends."""
        try:
            self.wait()
        finally:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _folder(self, step: int) -> str:
        return os.path.join(self.directory, str(step))

    def _orbax(self) -> Any:
        if self._opened is None:
            self._opened = arrays.open_checkpointer()
        return self._opened

    def _settle(self, failing: Callable[[int, BaseException], None]) -> None:
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        failure = None
        try:
            self._opened.wait_until_finished()
        except Exception as error:  # tensorstore's errors have no common class
            failure = error
        if jax.process_index() == 0:
            if failure is None:
                self._prune()
            else:
                steps.sweep(self.directory)  # half a checkpoint, on a disk that may be full
        if failure is not None:
            failing(step, failure)

    def _make_room(self) -> None:
        steps.sweep(self.directory)
        for step in sorted(self._damaged.intersection(self.steps())):
            name = steps.set_aside(self.directory, step)
            self._say(f"checkpoint {step} is damaged: kept aside as {name}")
        self._damaged = set()

    def _prune(self) -> None:
        present = self.steps()
        for step in present:
            if step not in self._metrics:
                # One that cannot be read is not counted among those to keep, and not deleted.
                try:
                    self._metrics[step] = steps.read_meta(self._folder(step))["metric"]
                except DamagedError:
                    self._damaged.add(step)
        known = {step: self._metrics[step] for step in present if step not in self._damaged}
        for step in steps.superfluous(known, self.config.keep, self.config.keep_best):
            steps.delete(self.directory, step)

    def _failure(self, step: int, error: BaseException) -> str:
        older = ", ".join(str(step) for step in self.steps()) or "none"
        return (
            f"checkpoint {step} could not be written to {self.directory} "
            f"({arrays.one_line(error)}); older checkpoints are untouched: {older}"
        )

    def _report(self, step: int, error: BaseException) -> None:
        self._say(self._failure(step, error))

    def _fail(self, step: int, error: BaseException) -> None:
        raise UserError(self._failure(step, error)) from None
