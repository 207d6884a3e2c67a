"""What a person sees of a run, and what the run leaves behind."""

from __future__ import annotations

import json
import math
import sys

import jax
import pytest

from jaxformer.train import environment, log, records

PARAMS = {
    "embed": {"tokens": jax.ShapeDtypeStruct((65, 128), "float32")},
    "layers": {"attention": {"q": jax.ShapeDtypeStruct((4, 128, 4, 32), "float32")}},
}


def reporter(workdir, start=0, **kwargs) -> log.Reporter:
    kwargs = {"total_steps": 20, "tokens_per_step": 100, **kwargs}
    return log.Reporter(workdir, start_step=start, **kwargs)


def train(out: log.Reporter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        out.train(step, {"loss": 4 / step + 1 / 3, "learning_rate": 1e-3})


def test_a_run_leaves_everything_in_its_folder(tmp_path, capsys):
    config = {"model": {"width": 8, "sizes": (1, 2)}}
    with reporter(tmp_path, config=config, baseline=("unigram entropy", 3.3)) as out:
        out.environment("data=8 fsdp=1 tensor=1")
        out.parameters(PARAMS, {"embed/tokens": "adam"})
        out.stage("compiling…")
        train(out, 1, 20)
        out.validation(20, {"loss": 0.7, "perplexity": 2.0})
        out.sample(20, "def ", "f(x):\n    pass [/b]")
        out.finish(("next: generate",))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "samples.txt", "loss.png",
        "tensorboard",
    }  # fmt: skip
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "config.json").read_text())["model"]["sizes"] == [1, 2]
    assert (tmp_path / "samples.txt").read_text() == (
        "=== step 20 · prompt 'def '\nf(x):\n    pass [/b]\n\n"
    )
    assert list((tmp_path / "tensorboard").glob("events.*"))
    printed = capsys.readouterr().out
    assert "mesh data=8 fsdp=1 tensor=1" in printed.splitlines()[0]
    for words in ("compiling…", "loss 0.5333", "validation 0.7000", "MFU n/a", "next: generate"):
        assert words in printed, words
    assert "\x1b" not in printed  # no terminal, no control codes


def test_records_hold_floats_in_full_and_wall_times_apart(tmp_path):
    value = 0.1 + 0.2
    with reporter(tmp_path, quiet=True) as out:
        out.train(1, {"loss": value, "grad_norm": math.nan})
        line = json.loads((tmp_path / "metrics.jsonl").read_text())  # flushed at once
    assert line["loss"] == value and line["grad_norm"] is None and line["wall"]["seconds"] >= 0
    (record,) = records.trace(tmp_path)
    assert math.isnan(record.pop("grad_norm"))
    assert record == {"step": 1, "split": "train", "loss": value}


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path):
    with reporter(tmp_path, quiet=True) as out:
        out.environment("data=1")
        train(out, 1, 5)
        out.validation(5, {"loss": 0.5})
        out.sample(5, "a", "b")
        train(out, 6, 9)
        out.sample(9, "a", "c")
    whole = records.trace(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 10, "split": "tr')  # kill -9 in the middle of a line
    assert records.trace(tmp_path) == whole
    with reporter(tmp_path, start=5, quiet=True) as out:
        assert [r["step"] for r in records.read_records(tmp_path)] == [1, 2, 3, 4, 5, 5]
        assert out.last_validation == {"loss": 0.5}
        out.environment("data=1")
        train(out, 6, 9)
    assert records.trace(tmp_path) == whole
    assert "=== step 5 " in (tmp_path / "samples.txt").read_text()
    assert "=== step 9 " not in (tmp_path / "samples.txt").read_text()
    assert records.read_resumes(tmp_path) == [5]


def test_a_new_start_at_zero_begins_a_new_trace(tmp_path):
    for _ in range(2):
        with reporter(tmp_path, quiet=True) as out:
            out.environment("data=1")
            train(out, 1, 3)
    assert [r["step"] for r in records.trace(tmp_path)] == [1, 2, 3]
    assert records.read_resumes(tmp_path) == []


def test_an_interrupted_run_still_draws_its_picture(tmp_path):
    with pytest.raises(KeyboardInterrupt), reporter(tmp_path, quiet=True) as out:
        train(out, 1, 3)
        raise KeyboardInterrupt
    assert (tmp_path / "loss.png").exists()


def test_a_repeated_last_sample_is_written_once(tmp_path):
    with reporter(tmp_path, quiet=True) as out:
        for _ in range(2):
            out.sample(20, "a", "b")
            out.sample(20, "c", "d")
    assert (tmp_path / "samples.txt").read_text().count("===") == 2


def test_mfu_is_speed_times_flops_over_peak(tmp_path, capsys):
    with reporter(tmp_path, flops_per_token=1e6, peak_flops=1e9) as out:
        now = [0.0]
        out._meter._clock = lambda: now[0]
        out._meter._time, out._meter._points[0] = 0.0, (0.0, 0)
        for step in (1, 2, 3):
            now[0] += 0.5
            out.train(step, {"loss": 1.0})
        out.validation(3, {"loss": 1.0})
    # 2 steps/s x 100 tokens x 1 MFLOP = 0.2 GFLOP/s of 1.
    assert "200 tokens/s  ETA 0:09  MFU 20.0 %" in capsys.readouterr().out


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with reporter(tmp_path) as out:
        train(out, 1, 20)
        out.validation(20, {"loss": 0.7})
        out.sample(20, "[bold]", "text")
    printed = capsys.readouterr().out
    assert "step 20/20" in printed and "validation 0.7000" in printed and "[bold]text" in printed


def test_only_process_zero_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with reporter(tmp_path, config={}) as out:
        out.environment("data=1")
        out.parameters(PARAMS)
        train(out, 1, 2)
        out.validation(2, {"loss": 0.5})
        out.sample(2, "a", "b")
        out.finish(("next",))
    assert out.last_validation == {"loss": 0.5}
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_parameter_table_adds_up_and_lines_up():
    lines = log.parameter_table(PARAMS, {"embed/tokens": "adam"}).splitlines()
    assert " ".join(lines[1].split()) == "embed/tokens float32[65, 128] 8,320 32.5 KiB adam"
    assert lines[-1].split() == ["total", f"{65 * 128 + 4 * 128 * 128:,}", "288.5", "KiB"]
    assert len({line.index(" KiB") for line in lines[1:]}) == 1


def test_a_failure_beside_the_training_does_not_stop_it(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_draw", lambda *_: 1 / 0)
    with (
        pytest.warns(UserWarning, match="ZeroDivisionError"),
        reporter(tmp_path, quiet=True) as out,
    ):
        train(out, 1, 2)
    assert len(records.trace(tmp_path)) == 2


def test_secrets_on_the_command_line_are_hidden():
    assert environment.hide_secrets("--config.hub_token=abc") == "--config.hub_token=***"
    assert (
        environment.hide_secrets("--config.data.tokenizer=byte") == "--config.data.tokenizer=byte"
    )
