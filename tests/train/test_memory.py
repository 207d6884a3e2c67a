"""malloc keeps what is freed: in a process of its own, for the setting is the process's."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from jaxformer.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
def test_freed_memory_is_taken_again_without_the_kernel():
    def run(how: str) -> int:
        words = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert run("keep") < 0.1 * run("default")
