"""Perplexity over the length: each length is judged as `evaluate` would, schemes are RoPE's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxformer import cli
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "experiments" / "extrapolation.py")
TINY = [
    "--config.model.num_layers=1", "--config.model.width=32", "--config.model.num_heads=2",
    "--config.data.tokenizer=byte", "--config.data.seq_len=16", "--config.model.max_length=16",
    "--config.data.batch_size=8", "--config.train.eval_tokens=256", "--config.train.steps=40",
    "--config.train.eval_every=0", "--config.generate.max_new_tokens=2",
    "--config.model.compute_dtype=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a tiny run with these changes, on a small text; returns its workdir."""
    folder = tmp_path_factory.mktemp("extrapolation")
    text = folder / "text.txt"
    text.write_text("".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(300)))

    def run(name: str, *changes: str) -> str:
        workdir = str(folder / name)
        words = [
            "train",
            "--config",
            CONFIG,
            *TINY,
            f"--workdir={workdir}",
            f"--config.data.source={text}",
            f"--config.data.cache_dir={folder}",
            *changes,
        ]
        assert cli.main(words) == 0
        return workdir

    return run


def values(out: str) -> dict[tuple[str, int], float]:
    """The printed losses, by curve and length."""
    lines = [line for line in out.splitlines() if " tokens " in line and line.startswith("  ")]
    parts = [line.rsplit(maxsplit=3) for line in lines]
    return {(name.strip(), int(n.replace(",", ""))): float(x) for name, n, _, x in parts}


@pytest.mark.slow
def test_a_curve_is_what_evaluate_says_at_each_length(train, tmp_path, capsys):
    rope = train("rope")
    out = tmp_path / "lengths.png"
    capsys.readouterr()
    words = ["extrapolate", rope, "--lengths", "32,16", "--tokens", "100000", "--out", str(out)]
    assert cli.main(words) == 0
    found = values(capsys.readouterr().out)
    assert out.read_bytes()[:4] == b"\x89PNG"
    schemes = [f"rope, {scheme}" for scheme in ("linear", "ntk", "yarn")]
    assert set(found) == {("rope", 16), ("rope", 32), *((name, 32) for name in schemes)}
    for name, length in found:
        words = ["evaluate", "--workdir", rope, f"--config.data.seq_len={length}",
                 "--config.model.max_length=32"]  # fmt: skip
        if "," in name:
            words += [f"--config.model.rope_scaling={name.split(', ')[1]}",
                      "--config.model.rope_scaling_factor=2.0",
                      "--config.model.rope_original_length=16"]  # fmt: skip
        assert cli.main(words) == 0
        loss = float(capsys.readouterr().out.split("loss")[1].split()[0])
        assert abs(loss - found[name, length]) < 2e-4, (name, length)
    assert len({found[name, 32] for name in ("rope", *schemes)}) > 1


@pytest.mark.slow
def test_a_table_of_positions_cannot_grow(train, tmp_path, capsys):
    learned = train("learned", "--config.model.positions=learned")
    out = tmp_path / "x.png"
    assert cli.main(["extrapolate", learned, "--lengths", "16,32", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "table of 16 positions" in error and "--lengths up to 16" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "extrapolate needs a run"),
        (["runs/nowhere"], "no such folder"),
        (["runs/x", "--lengths", "64,half"], "--lengths=64,half: give whole numbers"),
        (["runs/x", "--lengths", "0"], "give whole numbers from 1 on"),
        (["runs/x", "--tokens", "1,2"], "--tokens=1,2: give one whole number"),
        (["runs/x", "--lenghts", "64"], "did you mean '--lengths'"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["extrapolate", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(Path(tmp_path).iterdir())
