"""Tasks from the command line, as a new user would: train, evaluate by the task's metric, go on."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from jaxformer import cli, data, interop
from jaxformer.models import encoder
from jaxformer.train import records

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        data=dict({data}),
        model=dict({model}),
        objective=dict(name="{objective}"),
        optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.0, schedule="constant"),
        train=dict(steps=2, {train}),
        generate=dict(prompts=("two dogs",), max_new_tokens=6, num_beams=2),
        checkpoint=dict(every=0, keep=1, keep_best=0),
    ))
"""


def write_experiment(name: str, **sections: str) -> str:
    path = Path(f"{name}.py")
    path.write_text(EXPERIMENT.format(**{"train": "", **sections}))
    return str(path)


@pytest.fixture
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows() -> None:
    """Writes rows.tsv: a label and a text each."""
    rows = "".join(f"{('no', 'yes')[i % 2]}\tline {i} of many\n" for i in range(80))
    Path("rows.tsv").write_text("label\ttext\n" + rows)


def finite(workdir: str) -> None:
    found = records.read_records(Path(workdir))
    assert [r["step"] for r in found if r["split"] == "train"] == [1, 2]
    assert all(abs(r["loss"]) < 100 for r in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "model"),
    [
        ("seq2seq_packed", 'family="encoder_decoder", num_layers=1, width=16, num_heads=2'),
        ("seq2seq", 'family="recurrent", num_layers=1, width=16'),
    ],
)
def test_translation(place, capsys, layout, model):
    pytest.importorskip("sacrebleu")
    for end in ("en", "de"):
        lines = [f"{end} line {i} of {i * i} words" for i in range(60)]
        Path(f"text.{end}").write_text("\n".join(lines) + "\n")
    path = write_experiment(
        "translate", objective="seq2seq", model=model,
        data='source="text.en", target_source="text.de", tokenizer="byte", batch_size=8, '
        f'source_len=64, seq_len=64, layout="{layout}"',
    )  # fmt: skip
    assert cli.main(["train", "--config", path, "--workdir=run"]) == 0
    finite("run")
    assert cli.main(["evaluate", "--workdir=run", "--out=texts.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "bleu" in out and "chrf" in out and "--- sample at step 2" in out
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert rows and all(row["input"].startswith("en line") for row in rows)
    assert all(row["reference"] == row["input"].replace("en", "de", 1) for row in rows)
    assert cli.main(["generate", "--workdir=run", "--prompt", "a dog"]) == 0
    assert capsys.readouterr().out.startswith("a dog\n")


@pytest.mark.slow
def test_a_published_checkpoint_is_a_starting_point(place, capsys):
    """Its sizes and its weights come from the folder; the run becomes a folder again."""
    write_rows()
    config = encoder.Config(vocab_size=262, num_layers=2, width=16, num_heads=4, max_length=32)
    model = encoder.make(config)
    folder = place / "published"
    params = model.init(jax.random.key(0))
    config = model.config
    with_types = encoder.make(encoder.Config(**{**vars(config), "num_token_types": 2}))
    params = with_types.init(jax.random.key(0))
    interop.save_huggingface(folder, with_types, params)
    path = write_experiment(
        "classify", objective="classify", model="", train='init_from="published"',
        data='source="rows.tsv", labels="field", layout="padded", seq_len=24, batch_size=8, '
        'tokenizer="byte"',
    )  # fmt: skip
    assert cli.main(["train", "--config", path, "--workdir=run"]) == 0
    finite("run")
    out = capsys.readouterr().out
    assert "starts from published" in out and "new: classifier/bias" in out
    assert cli.main(["evaluate", "--workdir=run"]) == 0
    assert "matthews" in capsys.readouterr().out
    assert cli.main(["convert", "--from=run", "--to=back"]) == 0
    written = json.loads(Path("back/config.json").read_text())
    assert written["id2label"] == {"0": "no", "1": "yes"} and written["label2id"]["yes"] == 1
    again, params = interop.load_huggingface("back")
    assert (again.config.num_layers, again.config.width) == (2, 16)
    assert again.config.num_classes == 2


@pytest.mark.slow
def test_a_run_is_a_starting_point(place, capsys):
    """Its sizes too, by its folder or by one of its steps; what the config says goes before."""
    write_rows()
    Path("text.txt").write_text("\n".join(f"line {i} of many" for i in range(400)))
    before = write_experiment(
        "before", objective="masked_lm",
        model='family="encoder", num_layers=1, width=16, num_heads=2, max_length=48, dropout=0.1',
        data='source="text.txt", layout="windows", seq_len=24, batch_size=8, tokenizer="byte"',
    )  # fmt: skip
    assert cli.main(["train", "--config", before, "--workdir=before"]) == 0
    after = write_experiment(
        "after", objective="classify", model="dropout=0.0", train='init_from="before"',
        data='source="rows.tsv", labels="field", layout="padded", seq_len=24, batch_size=8, '
        'tokenizer="before"',
    )  # fmt: skip
    for workdir, source in {"after": "before", "again": "before/checkpoints/2"}.items():
        words = [f"--workdir={workdir}", f"--config.train.init_from={source}"]
        assert cli.main(["train", "--config", after, *words]) == 0
        made = json.loads(Path(workdir, "config.json").read_text())["model"]
        assert (made["family"], made["width"], made["max_length"]) == ("encoder", 16, 48)
        assert (made["dropout"], made["num_classes"], made["masked_head"]) == (0.0, 2, False)
        assert f"starts from {source}" in capsys.readouterr().out
        finite(workdir)


@pytest.mark.parametrize(("change", "mend"), [
    ("--config.data.seq_len=64", "try --config.data.seq_len=32"),
    ("--config.data.tokenizer=byte", "set --config.data.tokenizer=published"),
])  # fmt: skip
def test_what_a_checkpoint_cannot_grow_is_not_suggested(place, capsys, change, mend):
    """Its table of positions has an end, and its vocabulary is its tokenizer's."""
    write_rows()
    model = encoder.make(
        encoder.Config(vocab_size=32, num_layers=1, width=16, num_heads=2, num_token_types=2,
                       max_length=32)
    )  # fmt: skip
    interop.save_huggingface("published", model, model.init(jax.random.key(0)))
    path = write_experiment(
        "grown", objective="classify", model="", train='init_from="published"',
        data='source="rows.tsv", labels="field", layout="padded", seq_len=24, batch_size=8',
    )  # fmt: skip
    assert cli.main(["train", "--config", path, change]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and mend in error


def test_a_family_that_the_checkpoint_is_not_is_one_line(place, capsys):
    model = encoder.make(
        encoder.Config(vocab_size=262, num_layers=1, width=16, num_heads=2, num_token_types=2)
    )
    interop.save_huggingface("published", model, model.init(jax.random.key(0)))
    path = write_experiment(
        "wrong", objective="causal_lm", model='family="decoder"', data='tokenizer="byte"',
        train='init_from="published"',
    )  # fmt: skip
    assert cli.main(["train", "--config", path]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "model.family=encoder" in error


def test_the_run_s_tokenizer_is_used(place):
    """A tokenizer made here and one read again give the same ids."""
    tokenizer = data.tokenizers.ByteTokenizer()
    tokenizer.save(place)
    assert data.load_tokenizer(place).encode("two dogs") == tokenizer.encode("two dogs")
