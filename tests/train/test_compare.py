"""The shoot-out: equal parameters, rows that are kept, and failures that stop nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxformer import cli
from jaxformer.train import compare, cost, records
from jaxformer.train.prepare import prepare
from tests.conftest import REPOSITORY

SHOOTOUT = str(REPOSITORY / "experiments" / "attention_shootout.py")
TINY = """
from ml_collections import ConfigDict

VARIANTS = {"dense": "softmax", "short": "linformer(projected=4)", "broken": "mine.py:fails"}
TASKS = {"needle": ("data.source=needle:200:30", "data.labels=field")}
LENGTHS = (32, 64)
MEMORY = 2**30


def get_config():
    return ConfigDict(dict(
        data=dict(layout="padded", tokenizer="char", seq_len=32, batch_size=8,
                  cache_dir="cache"),
        model=dict(family="encoder", num_layers=1, width=16, num_heads=2, max_length=32,
                   positions="rope", pooling="mean"),
        objective=dict(name="classify"),
        optimizer=dict(name="adamw", learning_rate=1e-3),
        train=dict(steps=3),
        checkpoint=dict(every=0, keep=1, keep_best=0),
    ))
"""
MINE = """
import jax


def attend(q, k, v, *, mask=None, **options):
    return jax.numpy.broadcast_to(v.mean(1, keepdims=True), q.shape)


def fails(q, k, v, **options):
    raise RuntimeError("no such attention\\nand more lines")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY)
    Path("mine.py").write_text(MINE)
    return tmp_path


def run(*words: str) -> int:
    return cli.main(["compare", "--config", "tiny.py", "--out", "out", *words])


def rows() -> dict[tuple, dict]:
    return {(r["part"], r["variant"], r["length"]): r for r in compare.read("out")}


@pytest.mark.slow
def test_rows_are_made_once_and_a_failure_stops_nobody(folder, capsys):
    assert run("--lengths", "32", "--variants", "broken,dense,mine.py:attend") == 0
    first = rows()
    assert len(first) == 6
    failed = first["score", "broken", 32]
    assert failed["error"] == "RuntimeError: no such attention" and "accuracy" not in failed
    for name in ("dense", "attend"):
        score, price = first["score", name, 32], first["cost", name, 32]
        assert 0 <= score["accuracy"] <= 1 and 0.05 < score["largest_class"] < 0.5
        assert score["parameters"] == first["score", "dense", 32]["parameters"]
        assert min(x["step_seconds"] for x in (score, price)) > 0
        assert min(x["memory_bytes"] for x in (score, price)) > 4 * score["parameters"]
        last = records.read_records(f"out/needle/{name}", "validation")[-1]
        assert last["step"] == 3 and last["accuracy"] == score["accuracy"]
    table = Path("out/table.md").read_text()
    assert "| mine.py:attend | " in table and "no such attention" in table
    assert Path("out/shootout.png").read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert table in out and "failed: RuntimeError: no such attention" in out

    # Only what failed is made again; a line that a crash tore takes no other with it.
    path = Path("out/results.jsonl")
    before = path.read_bytes()
    path.write_bytes(before + b'{"part": "score", "ta')
    Path("mine.py").write_text(MINE.replace("raise RuntimeError", "return v #"))
    from jaxformer.modules.variants import own

    own.load_function.cache_clear()
    assert run("--variants", "broken,dense", "--lengths", "32") == 0
    made = [json.loads(x) for x in path.read_bytes()[len(before) :].splitlines()[1:]]
    assert [(r["part"], r["variant"], r["length"]) for r in made] == [
        ("score", "broken", 32),
        ("cost", "broken", 32),
    ]
    assert "error" not in rows()["score", "broken", 32]
    assert rows()["score", "dense", 32] == first["score", "dense", 32]


@pytest.mark.slow
def test_what_a_variant_learns_is_paid_for_by_its_feed_forward(folder):
    asked = compare.load("tiny.py")
    dense = prepare(compare._chosen(asked, "needle", "softmax"), say=lambda line: None)
    info = dense.dataset.info
    wanted = cost.parameters(dense.config, info)
    short = compare._chosen(asked, "needle", "linformer(projected=4)")
    assert cost.parameters(short, info) - wanted == 2 * 32 * 4  # keys and values, E and F
    narrow = cost.equalled(short, info, wanted)
    assert narrow.model.feed_forward < 64
    assert abs(cost.parameters(narrow, info) - wanted) <= 0.01 * wanted
    assert cost.equalled(dense.config, info, wanted) == dense.config
    with pytest.raises(Exception, match="no narrower feed-forward layer can pay"):
        cost.equalled(compare._chosen(asked, "needle", "linformer(projected=64)"), info, wanted)


@pytest.mark.slow
def test_a_step_beyond_the_memory_is_not_run(folder):
    Path("tiny.py").write_text(TINY.replace("2**30", "2**12"))
    assert run("--variants", "dense", "--lengths", "32") == 2  # nothing to draw
    assert {row.get("skipped") for row in compare.read("out")} == {"needs 0.0 GiB, more than 0.0"}


@pytest.mark.slow
def test_costs_grow_with_the_length_as_they_are_planned(folder):
    asked = compare.load("tiny.py", ["model.attention_backend=dense"])
    found = [compare._cost(asked, "dense", length) for length in (64, 512)]
    assert found[1]["memory_bytes"] > 8 * found[0]["memory_bytes"]
    assert found[0]["parameters"] == found[1]["parameters"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--variants", "dens"], "--variants: 'dens' is not one of dense, short, broken (did you"),
        (["--tasks", "listops"], "--tasks: 'listops' is not one of needle"),
        (["--lengths", "64,many"], "--lengths=64,many: give whole numbers"),
        (["--lengths", "8"], "--lengths: 8 is too short; give 32 tokens or more"),
        (["--lenghts", "64"], "did you mean '--lengths'"),
        (["--config.model.widht=3"], "did you mean 'width'"),
        (["--out", "tiny.py"], "--out=tiny.py is a file"),
        (["--config", str(REPOSITORY / "experiments" / "quickstart.py")], "has no VARIANTS"),
        (["--out", "old"], "--out=old holds a comparison with another config, at 'seed'"),
        (["--out", "other"], "--out=other holds a comparison with another variants, at 'dense'"),
    ],
)
def test_a_mistake_is_one_line(words, expected, folder, capsys):
    base = compare.load("tiny.py").base.to_dict()
    for name, found in {"old": ({**base, "seed": 1}, {}), "other": (base, {"dense": "?"})}.items():
        Path(name).mkdir()
        kept = {"config": found[0], "variants": found[1], "tasks": {}}
        Path(name, "compare.json").write_text(json.dumps(kept, default=list))
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not Path("out").exists()


def test_the_experiment_says_what_it_compares():
    asked = compare.load(SHOOTOUT)
    assert asked.reference == "softmax" and set(asked.tasks) == {"listops", "text", "needle"}
    from jaxformer.modules import variants
    from jaxformer.train.experiment import build

    for attention in asked.variants.values():
        choice = variants.parse(attention)
        assert choice is None or choice.kind.BIDIRECTIONAL
        for task in asked.tasks:
            build(compare._chosen(asked, task, attention))
