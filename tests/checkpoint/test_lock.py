"""One process on a workdir: the second is refused, a dead one is succeeded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxformer.checkpoint.lock import WorkdirLock
from jaxformer.errors import UserError

_HOLD = """
import sys, time
from jaxformer.checkpoint.lock import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refused, WorkdirLock(tmp_path):
            pass
        message = str(refused.value)
        assert f"process {holder.pid} on {socket.gethostname()}" in message
        assert str(tmp_path) in message and "\n" not in message
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with WorkdirLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_forked_child_does_not_keep_the_lock_beyond_its_parent(tmp_path):
    program = _HOLD.replace("time.sleep(60)", "os.fork() or time.sleep(3)").replace(
        "import sys", "import os, sys"
    )
    # The parent leaves at once, its child three seconds later.
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.DEVNULL)
    with WorkdirLock(tmp_path):
        pass


def test_within_a_process_it_is_exclusive_too_and_ends_with_the_block(tmp_path):
    workdir = tmp_path / "runs" / "x"
    with WorkdirLock(workdir):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), WorkdirLock(workdir):
            pass
    with WorkdirLock(workdir):
        pass


def test_a_workdir_that_cannot_be_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"), WorkdirLock(tmp_path / "file" / "run"):
        pass
