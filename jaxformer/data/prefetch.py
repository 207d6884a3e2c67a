"""Batches made and sent to the devices by a thread, while the step before computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import Any

from jaxformer.data.pipeline import Split


def prefetch(
    split: Split,
    start: int,
    stop: int,
    seed: int,
    sharding: Any = None,
    depth: int = 2,
    every: int = 1,
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Yields (step, batch on the devices) for the steps from `start` to `stop` - 1.

    Closing the iterator ends the thread; an exception in the thread is raised here.

    Args:
      split: what to read.
      start: the first step.
      stop: one more than the last.
      seed: of the run.
      sharding: of the batch axis (a jax Sharding whose spec names the first axis only), or None for
        the default device. With several processes each loads the rows of its own devices.
      depth: how many batches wait at most.
      every: yield each so many steps only.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def offer(item) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for step in range(start, stop, every):
                if not offer((step, to_devices(split, step, seed, sharding), None)):
                    return
            offer((stop, None, None))
        except BaseException as error:
            offer((stop, None, error))

    thread = threading.Thread(target=work, name="jaxformer-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            step, batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield step, batch
    finally:
        closed.set()
        thread.join()


def to_devices(split: Split, step: int, seed: int, sharding: Any = None) -> dict[str, Any]:
    """Makes one batch and puts it on the devices; see `prefetch` for the arguments."""
    import jax

    if sharding is None:
        return jax.device_put(split.batch(step, seed))
    size = split.batch_size
    if jax.process_count() == 1:
        return jax.device_put(split.batch(step, seed), sharding)
    places = [
        s[0].indices(size) for s in sharding.addressable_devices_indices_map((size,)).values()
    ]
    rows = slice(min(p[0] for p in places), max(p[1] for p in places))
    return {
        name: jax.make_array_from_process_local_data(sharding, local, (size, *local.shape[1:]))
        for name, local in split.batch(step, seed, rows).items()
    }
