"""Save and restore: bit-exact, onto any mesh, with the old config, keeping what was asked for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxformer.checkpoint import Checkpointer, Config, arrays, restore_params
from jaxformer.errors import UserError
from tests.checkpoint.conftest import RUN, make_state, same


@pytest.fixture
def checkpointer(tmp_path):
    with_all = Checkpointer(tmp_path / "checkpoints", Config(every=1, keep=100))
    yield with_all
    with_all.close()


def _abstract(state):
    return jax.eval_shape(lambda: state)


def test_a_round_trip_gives_every_bit_back(checkpointer, states):
    assert checkpointer.restore(_abstract(states[0])) is None
    assert checkpointer.save(3, states[1], run_config=RUN, metric=1.5)
    checkpointer.wait()
    restored, meta = checkpointer.restore(_abstract(states[0]), run_config=RUN)
    assert same(restored, states[1])
    assert meta == {"step": 3, "metric": 1.5, "run_config": json.loads(json.dumps(RUN))}


def test_nan_payloads_and_minus_zero_come_back(checkpointer):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000], np.uint32)
    state = {"params": {"x": jnp.asarray(bits.view(np.float32))}, "step": jnp.int32(-1)}
    checkpointer.save(1, state, run_config={})
    restored, _ = checkpointer.restore(_abstract(state))
    assert np.array_equal(np.asarray(restored["params"]["x"]).view(np.uint32), bits)


def test_training_may_donate_the_state_as_soon_as_save_returns(checkpointer):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}}
    saved = []
    for number in range(3):
        saved.append(np.array(state["params"]["w"], copy=True))
        checkpointer.save(number, state, run_config={})
        for _ in range(4):
            state = step(state)
    checkpointer.wait()
    for number in range(3):
        params, _ = restore_params(checkpointer.directory, step=number)
        assert np.array_equal(params["w"], saved[number])


def test_it_saves_when_it_is_time_and_not_twice(tmp_path, states):
    checkpointer = Checkpointer(tmp_path, Config(every=10, asynchronous=False))
    assert not checkpointer.save(9, states[0], run_config={})
    assert checkpointer.save(10, states[0], run_config={})
    assert checkpointer.save(11, states[0], run_config={}, force=True)
    assert not checkpointer.save(11, states[1], run_config={}, force=True)
    assert checkpointer.steps() == [10, 11]
    only_forced = Checkpointer(tmp_path, Config(every=0))
    assert not only_forced.save(20, states[0], run_config={})


def test_a_state_saved_on_one_mesh_is_restored_on_another(checkpointer, states):
    def on(*shape):
        mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

        def place(x):
            spec = ("data", "fsdp") if x.ndim == 2 else ()
            return NamedSharding(mesh, PartitionSpec(*spec))

        return jax.tree.map(place, states[2])

    checkpointer.save(1, jax.device_put(states[2], on(2, 4)), run_config={})
    for shardings in (on(4, 2), on(1, 1)):
        abstract = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            states[2],
            shardings,
        )
        restored, _ = checkpointer.restore(abstract)
        assert same(restored, states[2])
        assert jax.tree.map(lambda x: x.sharding, restored) == shardings
    assert same(restore_params(checkpointer.directory, ema=False)[0], states[2]["params"])


def test_another_config_is_refused_by_the_names_of_its_keys(checkpointer, states):
    checkpointer.save(1, states[0], run_config=RUN)
    checkpointer.wait()
    new = {
        "model": {"width": 8, "widths": [4, 5], "new": None},
        "train": {"steps": 200},
        "mesh": {"data": 8},
    }
    ignore = ("mesh.", "train.steps")
    with pytest.raises(UserError) as refused:
        checkpointer.restore(_abstract(states[0]), run_config=new, ignore=ignore)
    message = str(refused.value)
    assert "model.width: checkpoint 4, now 8" in message
    assert "model.new: checkpoint has none, now null" in message
    assert "mesh" not in message and "steps:" not in message and "widths" not in message
    assert "\n" not in message
    new["model"] = {"width": 4, "widths": (4, 5)}
    assert checkpointer.restore(_abstract(states[0]), run_config=new, ignore=ignore)
    with pytest.raises(UserError, match=r"mesh.data: checkpoint 1, now 8; train.steps"):
        checkpointer.restore(_abstract(states[0]), run_config=new)


def test_another_shape_is_refused_as_another_run_and_not_called_damage(checkpointer, states):
    checkpointer.save(1, states[0], run_config={})
    checkpointer.wait()
    wider = _abstract(make_state(0, ema=False))
    wider["params"]["embed"]["table"] = jax.ShapeDtypeStruct((32, 17), jnp.float32)
    with pytest.raises(UserError) as refused:
        checkpointer.restore(wider)
    assert "params/embed/table: checkpoint float32[32, 16], now float32[32, 17]" in str(
        refused.value
    )
    assert "ema/embed/table: checkpoint float32[32, 16], now none" in str(refused.value)


def test_the_newest_and_the_best_are_kept(tmp_path, states):
    checkpointer = Checkpointer(tmp_path, Config(every=1, keep=2, keep_best=1))
    for step, metric in enumerate([3.0, 1.0, 2.0, float("nan"), None, 1.5], 1):
        checkpointer.save(step, states[0], run_config={}, metric=metric)
    checkpointer.close()
    assert checkpointer.steps() == [2, 5, 6]
    assert restore_params(tmp_path, step="best")[1] == {}
    again = Checkpointer(tmp_path, Config(every=1, keep=1, keep_best=2))
    again.save(7, states[0], run_config={}, metric=9.0)
    again.close()
    assert again.steps() == [2, 6, 7]


def test_parameters_are_found_by_workdir_folder_or_step(checkpointer, states, tmp_path):
    for step, metric in ((1, 2.0), (2, 1.0), (3, 3.0)):
        checkpointer.save(step, states[step], run_config={"step": step}, metric=metric)
    checkpointer.wait()
    assert restore_params(tmp_path)[1] == {"step": 3}
    params, run_config = restore_params(checkpointer.directory, step="best")
    assert run_config == {"step": 2} and same(params, states[2]["ema"])
    assert same(restore_params(tmp_path, step=1, ema=False)[0], states[1]["params"])
    params, run_config = restore_params(tmp_path / "checkpoints" / "1")
    assert run_config == {"step": 1} and same(params, states[1]["ema"])
    placed = arrays.abstract_of(_abstract(states[1]["ema"]))
    assert same(restore_params(tmp_path, step=1, abstract=placed)[0], states[1]["ema"])


@pytest.mark.parametrize(
    ("path", "step", "words"),
    [
        ("nowhere", "latest", "nowhere: it does not exist"),
        (".", 7, "there are: 1"),
        (".", "best", "has a validation loss"),
        ("empty", "latest", "no finished step"),
    ],
)
def test_a_missing_checkpoint_is_named(tmp_path, states, path, step, words):
    (tmp_path / "empty").mkdir()
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(1, states[0], run_config={}, force=True)
    checkpointer.close()
    with pytest.raises(UserError, match=words):
        restore_params(tmp_path / path, step=step)


def test_a_full_disk_loses_the_save_and_nothing_else(tmp_path, states, capsys):
    """A limit on the size of files stands for the full disk: the write fails in the same place."""
    big = {"params": {"w": jax.random.normal(jax.random.key(0), (512, 512))}}
    checkpointer = Checkpointer(tmp_path, Config(every=1))
    checkpointer.save(1, big, run_config={})
    checkpointer.wait()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        checkpointer.save(2, big, run_config={})
        checkpointer.save(3, big, run_config={})  # tells of 2, and goes on
        with pytest.raises(UserError, match=r"checkpoint 3 could not be written.*untouched: 1$"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "checkpoint 2 could not be written" in lines[0]
    assert os.listdir(tmp_path) == ["1"]
    checkpointer.save(3, big, run_config={})
    checkpointer.close()
    assert checkpointer.steps() == [1, 3]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, states):
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match="checkpoint 1 could not be written"):
        checkpointer.save(1, states[0], run_config={}, force=True)


@pytest.mark.parametrize("bad", [{"every": -1}, {"keep": 0}, {"keep_best": -1}])
def test_a_config_that_cannot_work_is_refused(bad):
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(bad))} is"):
        Config(**bad)


def test_a_start_with_nothing_to_restore_does_not_import_orbax(tmp_path):
    program = (
        "import sys; from jaxformer.checkpoint import *\n"
        f"assert Checkpointer({str(tmp_path)!r}).restore({{}}) is None\n"
        "assert 'orbax' not in sys.modules and 'orbax.checkpoint' not in sys.modules\n"
        "warm_up().join(); assert 'orbax.checkpoint' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
