"""The command line: mistakes are told in one line, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxformer import cli
from jaxformer.train import records
from tests.conftest import REPOSITORY

TINY = [
    "--config.model.num_layers=1", "--config.model.width=32", "--config.model.num_heads=2",
    "--config.data.tokenizer=byte", "--config.data.seq_len=32", "--config.data.batch_size=8",
    "--config.train.eval_tokens=256", "--config.generate.max_new_tokens=8",
    "--config.compute_dtype=float32",
][:-1]  # fmt: skip
CONFIG = ["train", "--config", "experiments/quickstart.py"]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(400)))
    return path


def run(*words: str) -> int:
    return cli.main(list(words))


@pytest.mark.parametrize(
    "words,expected",
    [
        (["trian"], "'trian' is not a command (did you mean 'train'?)"),
        (["train"], "train needs --config"),
        (["train", "--config", "experiments/quickstrat.py"], "did you mean"),
        (["train", "--config", "LICENSE"], "not a Python file"),
        ([*CONFIG, "stray"], "'stray' is not understood"),
        ([*CONFIG, "--wrokdir=x"], "did you mean '--workdir'"),
        ([*CONFIG, "--config.model.widht=512"], "did you mean 'width'"),
        ([*CONFIG, "--config.modle.width=512"], "did you mean 'model'"),
        ([*CONFIG, "--config.model.width=wide"], "model.width must be int"),
        ([*CONFIG, "--config.model.width=1.5"], "model.width must be int, but 1.5 is float"),
        ([*CONFIG, "--config.model.width"], "has no value"),
        ([*CONFIG, "--config.seed=x"], "seed must be int"),
        ([*CONFIG, "--config.model.num_heads=7"], "num_heads=7 does not divide model.width=160"),
        ([*CONFIG, "--config.model.family=decodr"], "did you mean 'decoder'"),
        ([*CONFIG, "--config.objective.name=masked_lm"], "needs model.family=encoder"),
        ([*CONFIG, "--config.data.seq_len=4096"], "longer than model.max_length=1024"),
        ([*CONFIG, "--config.train.accumulate=3"], "does not divide data.batch_size=8"),
        ([*CONFIG, "--config.model.attention=performr"], "did you mean 'performer'"),
        ([*CONFIG, "--config.model.attention=performer(features=8)"], "mean 'num_features'"),
        ([*CONFIG, "--config.model.attention=performer(num_features=x)"], "by keyword"),
        ([*CONFIG, "--config.model.attention=performer(num_features=1.5)"], "1.5 is float"),
        ([*CONFIG, "--config.model.attention=linformer"], "cannot be causal"),
        (
            [*CONFIG, "--config.model.attention=bigbird", "--config.data.layout=packed"],
            "set --config.data.layout=windows",
        ),
        (
            [*CONFIG, "--config.model.attention=performer", "--config.model.positions=alibi"],
            "cannot honour model.positions=alibi",
        ),
        ([*CONFIG, "--config.model.attention=mine.py:f"], "there is no file mine.py"),
        ([*CONFIG, "--config.data.source=no/such.txt"], "no/such.txt"),
        ([*CONFIG, "--config.mesh.data=3"], "multiplies to 3, but there are 8 devices"),
        ([*CONFIG, "--config.data.batch_size=6"], "data x fsdp = 8 does not divide"),
        ([*CONFIG, "--config.mesh.data=1", "--config.mesh.tensor=8"], "model.num_heads=4"),
        ([*CONFIG, "--require_platform=tpu"], "JAX runs on cpu"),
        (["generate"], "generate needs --workdir, a run, or --from"),
        (["embed", "--text", "x", "--out", "LICENSE"], "LICENSE is there already"),
        (["perplexity", "--text", "LICENSE"], "perplexity needs --workdir, a run, or --from"),
        (["perplexity", "--text", "LICENSE", "--workdir", "no/run"], "no such folder"),
        (["generate", "--workdir", "no/such/run"], "no such folder"),
        (["evaluate", "--workdir", "tests"], "tests"),
        (["visualize", "los"], "did you mean 'loss'"),
        (
            ["visualize", "attention", "--workdir", "x", "--text", "a", "--rows", "1,b"],
            "--rows=1,b: give whole numbers",
        ),
        (["visualize", "loss"], "needs a run"),
        (["visualize", "loss", "tests"], "no metrics.jsonl"),
    ],
)
def test_a_mistake_is_one_line(words, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.stages.Lowered.compile", lambda *a, **k: pytest.fail("compiled"))
    if words[0] == "train" and not any("workdir" in word for word in words):
        words = [*words, f"--workdir={tmp_path / 'run'}"]
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_debug_shows_where(tmp_path):
    from jaxformer.errors import UserError

    with pytest.raises(UserError):
        run(*CONFIG, "--config.model.widht=512", "--debug")


def test_print_config_can_be_pasted_back(capsys):
    assert run(*CONFIG, "--print_config", "--config.model.width=320") == 0
    printed = capsys.readouterr().out.splitlines()
    assert "--config.model.width=320" in printed and "--config.model.norm=rms_norm" in printed
    assert run(*CONFIG, "--print_config", *printed) == 0
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.slow
def test_train_evaluate_generate_visualize(text_file, tmp_path, capsys):
    """The whole way on a small text; a second start has nothing left to do."""
    workdir = str(tmp_path / "run")
    words = [*CONFIG, *TINY, f"--workdir={workdir}", f"--config.data.source={text_file}",
             f"--config.data.cache_dir={tmp_path / 'cache'}", "--config.train.steps=6",
             "--config.train.eval_every=3"]  # fmt: skip
    assert run(*words) == 0
    out = capsys.readouterr().out
    for part in ("compiling…", "layers/feed_forward/in", "step 6/6", "MFU n/a", "sample at step 6"):
        assert part in out
    for name in ("config.json", "environment.json", "metrics.jsonl", "loss.png", "samples.txt",
                 "tokenizer.json"):  # fmt: skip
        assert (Path(workdir) / name).stat().st_size > 0
    assert json.loads((Path(workdir) / "config.json").read_text())["model"]["vocab_size"] == 262
    trace = records.trace(workdir)
    assert [record["step"] for record in trace] == [1, 2, 3, 4, 5, 6]
    assert run(*words) == 0
    assert "nothing left to train" in capsys.readouterr().out
    assert records.trace(workdir) == trace

    assert run(*words, "--config.model.width=64") == 2
    assert "model.width: checkpoint 32, now 64" in capsys.readouterr().err

    assert run("evaluate", "--workdir", workdir) == 0
    loss = float(capsys.readouterr().out.split("loss")[1].split()[0])
    assert abs(loss - records.trace(workdir, "validation")[-1]["loss"]) < 0.2  # all, not 256 tokens

    assert run("generate", "--workdir", workdir, "--prompt", "line 7") == 0
    once = capsys.readouterr().out
    assert once.startswith("line 7") and len(once) > 7
    assert run("generate", "--workdir", workdir, "--prompt", "line 7") == 0
    assert capsys.readouterr().out == once
    assert run("generate", "--workdir", workdir, "--prompt", "line 7", "--prompt", "a") == 0
    assert once.strip() in capsys.readouterr().out  # a batch mate changes nothing

    assert run("perplexity", "--workdir", workdir, "--text", str(text_file)) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert abs(float(said["loss"]) - loss) < 0.2 and int(said["tokens"].replace(",", "")) > 10_000
    vectors = tmp_path / "vectors.npy"
    words = ["embed", "--workdir", workdir, "--text", str(text_file), "--out", str(vectors)]
    assert run(*words, "--pooling=last", "--checkpoint=latest") == 0
    assert np.load(vectors).shape == (400, 32)

    for words in (["loss", workdir], ["attention", "--workdir", workdir, "--text", "line 1"]):
        out = tmp_path / f"{words[0]}.png"
        assert run("visualize", *words, "--out", str(out)) == 0
        assert out.read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()


@pytest.mark.slow
def test_dry_run_counts_what_training_holds(text_file, tmp_path, capsys):
    words = [*CONFIG, *TINY, f"--config.data.source={text_file}", "--dry_run",
             f"--config.data.cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    assert run(*words) == 0
    out = capsys.readouterr().out
    # Embedding and head, attention and feed-forward, two short convolutions, a scale a head.
    count = 2 * 262 * 32 + 12 * 32 * 32 + 2 * 4 * 32 + 2
    assert f"{count:,}" in out and "memory peak" in out
    assert not (tmp_path / "run").exists()
