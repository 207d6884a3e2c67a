"""Damage: every flipped bit, cut, missing file or killed save is noticed or does no harm."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer.checkpoint import Checkpointer, Config, restore_params
from jaxformer.errors import UserError
from tests.checkpoint.conftest import make_state, same

_FLIPS = int(os.environ.get("JAXFORMER_TEST_FLIPS", "100"))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, states) -> Path:
    """A folder with steps 1 and 2, never changed: tests work on copies."""
    folder = tmp_path_factory.mktemp("two")
    checkpointer = Checkpointer(folder, Config(every=1))
    for step in (1, 2):
        checkpointer.save(step, states[step], run_config={"step": step}, metric=float(-step))
    checkpointer.close()
    return folder


@pytest.fixture
def folder(two_steps, tmp_path) -> Path:
    shutil.copytree(two_steps, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def _abstract(states):
    return jax.eval_shape(lambda: states[0])


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _table_file(step: Path, state: dict) -> Path:
    """The file that holds the embedding table; its first byte is the table's first."""
    table = np.asarray(state["params"]["embed"]["table"]).tobytes()
    (file,) = (path for path in _files(step / "params") if path.read_bytes().startswith(table))
    return file


@pytest.mark.slow
def test_no_flipped_bit_is_restored_silently(folder, states, tmp_path):
    """Bits drawn uniformly over all bytes of all files: arrays, metadata, manifests, checksums."""
    draw = random.Random(0)
    shutil.rmtree(folder / "1")
    files = _files(folder / "2")
    sizes = [path.stat().st_size for path in files]
    noticed = 0
    for _ in range(_FLIPS):
        (path,) = draw.choices(files, sizes)
        bit = draw.randrange(path.stat().st_size * 8)
        _flip(path, bit)
        checkpointer = Checkpointer(folder)
        try:
            restored, _ = checkpointer.restore(_abstract(states), run_config={"step": 2})
            assert same(restored, states[2]), f"silently wrong: bit {bit} of {path}"
        except UserError as error:
            assert "no intact checkpoint" in str(error), f"bit {bit} of {path}"
            noticed += 1
        finally:
            checkpointer.close()
        _flip(path, bit)
    assert noticed > _FLIPS / 5  # else the flips missed the checkpoint


def test_a_flip_in_every_file_is_noticed_or_harmless_for_parameters_too(folder, states):
    for path in _files(folder / "2"):
        if path.stat().st_size:
            _flip(path, path.stat().st_size * 4 + 1)
    params, run_config = restore_params(folder)
    assert run_config == {"step": 1} and same(params, states[1]["ema"])


def test_a_damaged_newest_step_is_named_and_the_one_before_is_used(folder, states, capsys):
    _flip(_table_file(folder / "2", states[2]), 12345)
    checkpointer = Checkpointer(folder, Config(every=1, keep=1, keep_best=0))
    restored, meta = checkpointer.restore(_abstract(states))
    assert meta["step"] == 1 and same(restored, states[1])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and f"{folder}/2: " in lines[0] and "using step 1" in lines[0]
    assert checkpointer.steps() == [1, 2]  # reading changed nothing
    # The run goes on and comes to the same step again.
    assert checkpointer.save(2, states[2], run_config={"step": 2})
    checkpointer.close()
    assert sorted(os.listdir(folder)) == ["2", "2.damaged"]
    assert same(Checkpointer(folder).restore(_abstract(states))[0], states[2])


def test_when_all_are_damaged_that_is_told_and_nothing_is_lost(folder, states):
    for step in (1, 2):
        _flip(_table_file(folder / str(step), states[step]), 999)
    before = {path: path.read_bytes() for path in _files(folder)}
    for restore in (
        lambda: Checkpointer(folder).restore(_abstract(states)),
        lambda: restore_params(folder, ema=False),
        lambda: restore_params(folder, ema=False, step=2),
    ):
        with pytest.raises(UserError, match=r"no intact checkpoint.*nothing was deleted"):
            restore()
    assert {path: path.read_bytes() for path in _files(folder)} == before


def test_the_last_good_step_outlives_newer_damaged_ones(folder, states):
    """Steps that nobody can read do not count among the newest to keep."""
    for step in (3, 4):
        shutil.copytree(folder / "2", folder / str(step))
        (folder / str(step) / "meta" / "metadata").write_text("{}")
    checkpointer = Checkpointer(folder, Config(every=1, keep=2, keep_best=0))
    checkpointer.save(5, states[3], run_config={})  # without a restore before
    checkpointer.close()
    assert checkpointer.steps() == [2, 3, 4, 5]
    assert restore_params(folder, step=2)[1] == {"step": 2}


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0.5, None])
def test_every_cut_or_missing_file_is_noticed_or_harmless(folder, states, cut, capfd):
    noticed = set()
    for path in _files(folder / "2"):
        data = path.read_bytes()
        path.unlink() if cut is None else path.write_bytes(data[: int(len(data) * cut)])
        restored, meta = Checkpointer(folder, say=lambda line: None).restore(_abstract(states))
        assert same(restored, states[meta["step"]]), path
        if meta["step"] == 1:
            noticed.add(path)
        path.write_bytes(data)
    # Orbax keeps files that nothing refers to any more; these must be among the others.
    assert {folder / "2" / "meta" / "metadata", _table_file(folder / "2", states[2])} <= noticed
    assert capfd.readouterr().err == ""  # Orbax's tracebacks are kept off the screen


def test_what_a_killed_save_leaves_is_ignored_and_swept_by_the_next(folder, states):
    shutil.copytree(folder / "2", folder / "7.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2", folder / "0.pruned")
    checkpointer = Checkpointer(folder, Config(every=1))
    assert checkpointer.restore(_abstract(states))[1]["step"] == 2
    assert checkpointer.save(7, states[3], run_config={})
    checkpointer.close()
    assert sorted(os.listdir(folder)) == ["2", "7"]
    assert same(restore_params(folder)[0], states[3]["ema"])


_SAVE_FOREVER = """
import itertools, sys
from jaxformer.checkpoint import Checkpointer, Config
from tests.checkpoint.conftest import make_state
states = [make_state(seed) for seed in range(5)]
checkpointer = Checkpointer(sys.argv[1], Config(every=1, keep=2, keep_best=1))
start = (checkpointer.steps() or [0])[-1] + 1
for step in itertools.count(start):
    checkpointer.save(step, states[step % 5], run_config={"step": step}, metric=1 / step)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_its_last_step_restorable(tmp_path):
    draw = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        started = int(([0] + [int(line) for line in process.stdout.read().split()])[-1])
        process.wait()
        state, meta = Checkpointer(tmp_path, say=pytest.fail).restore(
            jax.eval_shape(lambda: make_state(0))
        )
        assert same(state, make_state(meta["step"] % 5))
        assert meta["step"] >= started - 2  # `started` may be half written, the one before never
