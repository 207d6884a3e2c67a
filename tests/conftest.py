"""What every test shares: eight virtual CPU devices, a compilation cache, the shared data."""

from __future__ import annotations

import os
from pathlib import Path

# These must stand before the first import of jax, which reads them once.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXFORMER_TEST_PLATFORM", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
# Most of the time goes into compiling the same programs again: kept, a second run needs half of it.
_CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "xla_tests"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("MPLBACKEND", "agg")  # no test opens a window
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network

import gc
import itertools

import jax
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets that are not in the repository; without it the test skips."""
    folder = Path(os.environ.get("JAXFORMER_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the shared data folder is not here; set JAXFORMER_DATA to its path")
    return folder


_finished = itertools.count(1)


def pytest_runtest_logfinish(nodeid, location):
    """Forgets compiled programs before they fill the process's memory map.

    On a CPU each holds three or four of the 65,530 mappings that Linux allows a process; beyond
    them the next compile is a segmentation fault.
    """
    maps = Path("/proc/self/maps")
    if next(_finished) % 10 == 0 and maps.exists():
        with maps.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count > 20_000:
            jax.clear_caches()
            gc.collect()
