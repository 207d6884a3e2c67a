"""A run that is killed, asked to stop or damaged goes on as if nothing had happened.

JAXFORMER_TEST_KILLS sets how many times the run is killed with SIGKILL (6 by default).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxformer.checkpoint import steps
from jaxformer.train import records

pytestmark = pytest.mark.slow

_KILLS = int(os.environ.get("JAXFORMER_TEST_KILLS", "6"))
_STEPS, _EVERY = 120, 10
_EXPERIMENT = f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        data=dict(source="{{text}}", tokenizer="byte", seq_len=16, batch_size=8),
        model=dict(family="decoder", num_layers=2, width=32, num_heads=2, max_length=32),
        optimizer=dict(name="adamw", learning_rate=0.003, ema_decay=0.9),
        train=dict(steps={_STEPS}, eval_every=30, eval_tokens=256),
        checkpoint=dict(every={_EVERY}, keep=2, keep_best=1),
        generate=dict(max_new_tokens=4),
    ))
"""


class _Runs:
    """Starts the same experiment in workdirs under one folder."""

    def __init__(self, folder: Path):
        draw = random.Random(0)
        text = folder / "text.txt"
        text.write_text("".join(draw.choice("abc def\n") for _ in range(20_000)))
        self.experiment = folder / "tiny.py"
        self.experiment.write_text(_EXPERIMENT.format(text=text))
        self.folder = folder
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAXFORMER_CACHE": str(folder / "cache"),
            "XLA_FLAGS": "",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, workdir: Path, **environment: str) -> subprocess.Popen:
        words = ["train", "--config", str(self.experiment), "--workdir", str(workdir)]
        return subprocess.Popen(
            [sys.executable, "-m", "jaxformer.cli", *words],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir: Path, **environment: str) -> str:
        process = self.start(workdir, **environment)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> _Runs:
    return _Runs(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def uninterrupted(runs) -> Path:
    workdir = runs.folder / "uninterrupted"
    runs.finish(workdir)
    assert [record["step"] for record in records.trace(workdir)] == list(range(1, _STEPS + 1))
    return workdir


def _assert_same(workdir: Path, reference: Path) -> None:
    """Every recorded number and every bit of the last state are the same."""
    for split in ("train", "validation"):
        assert records.trace(workdir, split) == records.trace(reference, split)
    last, expected = (
        steps.read_meta(str(folder / "checkpoints" / str(_STEPS)))["leaves"]
        for folder in (workdir, reference)
    )
    assert last == expected


def _until_it_trains(process: subprocess.Popen) -> str:
    """Reads the output up to the first step, or to its end; returns it."""
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("compiled in"):
            break
    return output


def _until_records(workdir: Path, process: subprocess.Popen, number: int = 1) -> str:
    """Waits until the run has recorded steps of its own, or has ended; returns its output."""
    output, before = _until_it_trains(process), len(records.read_records(workdir))
    while len(records.read_records(workdir)) < before + number and process.poll() is None:
        time.sleep(0.01)
    return output


def _newest(workdir: Path) -> int:
    return steps.committed(str(workdir / "checkpoints"))[-1]


def test_killed_at_random_moments_the_trace_is_that_of_the_uninterrupted_run(runs, uninterrupted):
    draw = random.Random(os.environ.get("JAXFORMER_TEST_SEED", "0"))
    kills = finished = resumed = 0
    workdir = runs.folder / "killed"
    while kills < _KILLS or not finished:
        process, output = runs.start(workdir), ""
        if kills < _KILLS:
            # One in four dies somewhere in its start, the others while they train and save.
            if draw.random() < 0.25:
                time.sleep(draw.uniform(0.0, 3.0))
            else:
                # By progress, not by time: a slow machine too must come past a checkpoint.
                output = _until_records(workdir, process, draw.randrange(1, 4 * _EVERY))
                time.sleep(draw.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
        output += process.communicate(timeout=300)[0]
        assert process.returncode in (0, -signal.SIGKILL), output
        assert "damaged" not in output
        if process.returncode:
            kills += 1
            continue
        _assert_same(workdir, uninterrupted)
        finished += 1
        resumed += len(records.read_resumes(workdir))
        if kills < _KILLS:  # it was done before we could kill it often enough
            shutil.rmtree(workdir)
    assert resumed, "no kill came after a checkpoint"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_goes_on_later(runs, uninterrupted, number):
    workdir = runs.folder / number.name
    process = runs.start(workdir)
    _until_records(workdir, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    last = records.trace(workdir)[-1]["step"]
    assert last < _STEPS, "it ended before the signal came"
    assert _newest(workdir) == last
    output = runs.finish(workdir)
    assert f"resumes at step {last} of {_STEPS}" in output
    _assert_same(workdir, uninterrupted)


def test_on_eight_devices_it_goes_on_with_the_same_batches(runs, uninterrupted):
    workdir = runs.folder / "other-mesh"
    process = runs.start(workdir)
    _until_records(workdir, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert 0 < _newest(workdir) < _STEPS
    output = runs.finish(workdir, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert "8 x cpu" in output
    loss, expected = (
        np.array([record["loss"] for record in records.trace(folder)])
        for folder in (workdir, uninterrupted)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_flipped_bit_is_named_and_the_step_before_is_used(runs, uninterrupted):
    workdir = runs.folder / "flipped"
    shutil.copytree(uninterrupted, workdir)
    newest = workdir / "checkpoints" / str(_STEPS)
    file = max((newest / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    output = runs.finish(workdir)
    assert f"damaged checkpoint {newest}" in output
    assert f"using step {_STEPS - _EVERY}" in output
    assert "Traceback" not in output
    assert (workdir / "checkpoints" / f"{_STEPS}.damaged").is_dir()
    _assert_same(workdir, uninterrupted)


def test_a_second_process_on_a_live_workdir_is_refused(runs):
    workdir = runs.folder / "shared"
    first = runs.start(workdir)
    try:
        _until_it_trains(first)
        second = runs.start(workdir)
        output, _ = second.communicate(timeout=120)
        assert second.returncode == 2
        assert output.startswith("error: ") and f"process {first.pid} on" in output
        assert output.count("\n") == 1
    finally:
        first.kill()
        first.communicate()
