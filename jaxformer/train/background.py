"""One thread that writes TensorBoard files and draws pictures beside the training.

Their imports alone take a second, which the first step must not wait for.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Background:
    """Runs what it is given, in order, in one thread; a failure there warns and stops nothing.

    Args:
      folder: for the TensorBoard files.
      start_step: later steps that an earlier start of the run left there become invalid.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder, self._start_step = folder, start_step
        self._writer: Any = None
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._failed: set[str] = set()
        self._thread: threading.Thread | None = None

    def add_scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes each value to TensorBoard as "split/name"."""
        values = dict(values)
        self.run(
            lambda: [
                self._tensorboard().add_scalar(f"{split}/{name}", value, step)
                for name, value in values.items()
            ]
        )

    def add_text(self, step: int, text: str) -> None:
        """Writes a text to TensorBoard."""
        self.run(lambda: self._tensorboard().add_text("sample", text, step))

    def run(self, job: Callable[[], Any]) -> None:
        """Runs `job` after those given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="jaxformer-log", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Waits for all jobs and closes the TensorBoard file."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder), purge_step=self._start_step + 1 if self._start_step else None
            )
        return self._writer

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # neither a full disk nor a broken picture costs a run
                message = f"{type(error).__name__}: {error}"
                if message not in self._failed:
                    self._failed.add(message)
                    warnings.warn(f"log: {message}", stacklevel=1)
