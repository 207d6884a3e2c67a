"""Every experiment runs as its docstring says, on less: two steps, then what it is good for."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import pytest

from jaxformer import cli, interop
from jaxformer.models import encoder
from jaxformer.train import records
from tests.conftest import REPOSITORY

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
LESS = ["--config.train.steps=2", "--config.train.eval_tokens=512", "--config.data.batch_size=8",
        "--config.generate.max_new_tokens=4", "--config.data.max_documents=60"]  # fmt: skip


@pytest.fixture
def train(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(400)))

    def run(name: str, *more: str, workdir: str = "") -> list[dict]:
        workdir = workdir or f"runs/{name}"
        words = ["train", "--config", str(REPOSITORY / "experiments" / f"{name}.py"), *LESS, *more]
        assert cli.main([*words, f"--workdir={workdir}"]) == 0
        found = records.read_records(Path(workdir))
        assert [r["step"] for r in found if r["split"] == "train"] == [1, 2]
        assert all(math.isfinite(r["loss"]) and not r.get("skipped") for r in found)
        return found

    return run


def test_all_experiments_are_tried_here():
    assert EXPERIMENTS == ["bert_mlm", "finetune_classify", "gpt2_124m", "gpt_char", "quickstart",
                           "sst2"]  # fmt: skip


@pytest.mark.slow
def test_quickstart(train):
    found = train("quickstart")
    # Zeros in the head: the first loss is that of a uniform guess.
    assert abs(found[0]["loss"] - math.log(2048)) < 1e-3


@pytest.mark.slow
def test_gpt_char(train):
    train("gpt_char", "--config.data.source=text.txt")


@pytest.mark.slow
def test_bert_mlm_and_what_it_is_good_for(train, capsys):
    """Fine-tuning takes the pretrained arrays and makes only the classifier anew."""
    few = "--config.data.max_documents=0"
    train("bert_mlm", few)
    train("finetune_classify", few)
    out = capsys.readouterr().out
    assert "starts from runs/bert_mlm" in out and "new: classifier/bias, classifier/kernel" in out
    train("finetune_classify", few, "--config.train.init_from=", workdir="runs/from_scratch")


@pytest.mark.slow
def test_gpt2_124m_at_reduced_length(train):
    found = train(
        "gpt2_124m", "--config.data.source=text.txt", "--config.data.tokenizer=byte",
        "--config.data.seq_len=32", "--config.train.accumulate=1", "--config.mesh.data=1",
        "--config.mesh.fsdp=8", "--config.model.unroll=1",
    )  # fmt: skip
    assert abs(found[0]["loss"] - math.log(50304)) < 0.5


@pytest.mark.slow
def test_gpt2_124m_dry_run_needs_no_data(capsys):
    path = str(REPOSITORY / "experiments" / "gpt2_124m.py")
    less = ["--config.data.seq_len=64", "--config.data.batch_size=8", "--config.train.accumulate=1",
            "--config.model.unroll=1"]  # fmt: skip
    assert cli.main(["train", "--config", path, "--dry_run", *less]) == 0
    count = 50304 * 768 + 1024 * 768 + 12 * (12 * 768 * 768 + 2 * 768) + 768
    assert f"{count:,}" in capsys.readouterr().out


@pytest.mark.slow
def test_sst2(train, tmp_path, capsys):
    """From a published checkpoint (a small one of random weights), on files in SST-2's form."""
    small = encoder.Config(
        vocab_size=262, num_layers=2, width=16, num_heads=4, max_length=64, num_token_types=2,
        pooler=True, masked_head=False,
    )  # fmt: skip
    model = encoder.make(small)
    interop.save_huggingface("published", model, model.init(jax.random.key(0)))
    for name in ("train", "dev"):
        lines = [f"{i % 2} a film of {i * i} frames" for i in range(60)]
        Path(f"sst2.{name}.txt").write_text("\n".join(lines) + "\n")
    train("sst2", "--config.train.init_from=published", "--config.data.tokenizer=byte")
    assert "new: classifier/bias, classifier/kernel" in capsys.readouterr().out
    assert cli.main(["evaluate", "--workdir=runs/sst2"]) == 0
    assert "f1" in capsys.readouterr().out
