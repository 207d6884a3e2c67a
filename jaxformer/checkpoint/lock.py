"""One process at a time on a workdir."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from types import TracebackType

from jaxformer.errors import UserError


class WorkdirLock:
    """Holds a workdir for this process: `with WorkdirLock(workdir): ...`.

    The lock is the kernel's (flock on `<workdir>/.lock`), so it ends with its process however that
    ends, and a file left behind by a killed run stands in nobody's way. In a run of several
    processes, process 0 holds it for all.

    Args:
      workdir: the folder; made if it is not there.

    Raises:
      UserError: on entering, when another process holds the workdir (names its pid and host), or
        when the folder cannot be made or written.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.workdir = os.path.abspath(workdir)
        self._file: int | None = None

    def __enter__(self) -> WorkdirLock:
        path = os.path.join(self.workdir, ".lock")
        try:
            os.makedirs(self.workdir, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"workdir {self.workdir} cannot be used: {error.strerror}; give another --workdir"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            os.close(file)
            raise UserError(
                f"workdir {self.workdir} is in use by {holder}: wait until it ends, stop it, or "
                "give another --workdir"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        self._file = file
        # A forked child would hold the lock beyond our death.
        os.register_at_fork(after_in_child=self._close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The file stays: removing it would let a third process lock a new one beside the second.
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _holder(file: int) -> str:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not yet written its name
        return "another process"
