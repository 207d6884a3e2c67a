"""SIGTERM and Ctrl-C ask the loop to save and end; a second Ctrl-C ends at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal is not None else ""


@contextlib.contextmanager
def listen() -> Iterator[StopRequest]:
    """Within it, SIGTERM and the first SIGINT only set the request that it yields."""
    request = StopRequest()

    def handle(number, frame):
        if number == signal.SIGINT and request:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
