"""A folder that cannot be used is told in one line by every command, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import cli
from jaxformer.interop import finite
from jaxformer.train.records import read_records
from tests.test_cli_models import TEXT, make_decoder, make_encoder, make_tokenizer

WEIGHTS, INDEX = Path("model/model.safetensors"), Path("model/model.safetensors.index.json")
CONFIG, TOKENIZER = Path("model/config.json"), Path("model/tokenizer.json")
EXPERIMENT = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        data=dict(source="text.txt", seq_len=32, batch_size=8, cache_dir="cache"),
        train=dict(steps=1), optimizer=dict(name="adamw"),
    ))
"""
COMMANDS = {
    "embed": "embed --from=model --text=text.txt --out=new.npy",
    "perplexity": "perplexity --from=model --text=text.txt",
    "generate": "generate --from=model --prompt=line --config.generate.max_new_tokens=4",
    "convert": "convert --from=model --to=new",
    "train": "train --config=experiment.py --workdir=new --config.train.init_from=model "
             "--config.data.tokenizer=model",
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("experiment.py").write_text(EXPERIMENT)


def refused(words: str, expected: str, capsys) -> None:
    """Runs a command, which must end with one line that holds `expected`, and write nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert cli.main(words.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert expected in said.err and "Traceback" not in said.err
    assert said.out == "" or words.startswith("train")  # how far the data have come
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*")
             if Path("cache") not in (path, *path.parents)}  # fmt: skip
    if words.startswith("train"):  # it locks its workdir before it looks at the data
        assert after.keys() - before.keys() <= {Path("new"), Path("new/.lock")}
    else:
        assert after == before


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def truncate() -> None:
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:-100])


def set_value(value: float) -> Callable[[], None]:
    def damage() -> None:
        tensors = load_file(WEIGHTS)
        name = sorted(tensors)[3]
        tensors[name].reshape(-1)[5:7] = value
        save_file(tensors, WEIGHTS)

    return damage


def escape() -> None:
    names = list(load_file(WEIGHTS))
    WEIGHTS.rename("elsewhere.safetensors")
    INDEX.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))


def add_tokens(*names: str, special: bool = False) -> None:
    """Gives the vocabulary more tokens, from 300 on; the embedding has 300 rows."""
    added = [{"id": 300 + i, "content": name, "special": special, "single_word": False,
              "lstrip": False, "rstrip": False, "normalized": False}
             for i, name in enumerate(names)]  # fmt: skip
    change(TOKENIZER, added_tokens=json.loads(TOKENIZER.read_text())["added_tokens"] + added)


def new_id(index: int) -> Callable[[], None]:
    """Gives the last token of the vocabulary another id."""

    def damage() -> None:
        model = json.loads(TOKENIZER.read_text())["model"]
        last = max(model["vocab"], key=model["vocab"].get)
        model["vocab"][last] = index
        change(TOKENIZER, model=model)

    return damage


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "truncated": (truncate, "model.safetensors is truncated"),
    "architecture": (lambda: change(CONFIG, architectures=["T5Model"]), "is 'T5Model'"),
    "family": (lambda: change(CONFIG, model_type="blooom"), "model_type is 'blooom'"),
    "NaN": (set_value(np.nan), "holds NaN or infinity in 2 of its"),
    "infinity": (set_value(-np.inf), "holds NaN or infinity in 2 of its"),
    "escaping index": (escape, "which may lie outside this folder"),
    "larger tokenizer": (lambda: add_tokens(*(f"<more{i}>" for i in range(5))),
                         "ids up to 304, but the embedding has 300"),
    "larger by a mask": (lambda: add_tokens("<mask>", special=True),
                         "ids up to 300, but the embedding has 300"),
    "doubled id": (new_id(7), "both have id 7"),
    "huge id": (new_id(2**31), ""),
    "no folder": (lambda: Path("model").rename("modle"), "model: no such folder"),
}  # fmt: skip


# Where training reads the tokenizer first, and the weights when the data are there.
IN_TRAINING = {
    "larger tokenizer": "model.vocab_size=300 is smaller than the tokenizer's 305",
    "larger by a mask": "model.vocab_size=300 is smaller than the tokenizer's 301",
    "no folder": "data.tokenizer='model': no file model",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder(case, command, capsys):
    make_encoder(Path("model")) if command == "embed" else make_decoder(Path("model"))
    capsys.readouterr()
    damage, expected = BROKEN[case]
    damage()
    if command == "train":
        expected = IN_TRAINING.get(case, expected)
    refused(COMMANDS[command], expected, capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("embed --max_length=65", "max_length is 65; this model reads 1 to 64"),
        ("embed --max_length=0", "--max_length=0: give a whole number from 1 on"),
        ("embed --batch_size=many", "--batch_size=many: give a whole number from 1 on"),
        ("embed --pooling=men", "did you mean 'mean'"),
        ("embed --text=no.txt", "cannot read no.txt"),
        ("embed --text=empty.txt", "empty.txt has no lines"),
        ("embed --text=latin.txt", "latin.txt: it is not UTF-8"),
        ("embed --out=text.txt", "text.txt is there already"),
        ("embed --out=no/new.npy", "there is no folder no"),
        ("embed --workdir=run", "--from=model and --workdir=run"),
        ("embed --config=experiment.py", "leave --config out"),
        ("embed --config.train.steps=1", "of which model, generate, data can be changed"),
        ("embed --config.model.widht=1", "did you mean 'width'"),
        ("embed --config.model.max_length=128", "config.json makes it [128"),
        ("perplexity --max_length=65", "max_length is 65; this model reads 1 to 64"),
        ("perplexity --stride=65", "stride is 65; it must be 1 to max_length=64"),
        ("perplexity --text=no.txt", "cannot read no.txt"),
        ("perplexity --text=empty.txt", "has no word to score"),
        ("generate --config.generate.max_new_tokens=64", "try --config.generate.max_new_tokens="),
        ("generate --config.generate.num_beams=x", "generate.num_beams must be int"),
        ("generate --checkpoint=best", "leave --checkpoint out"),
        ("train --config.data.seq_len=128", "data.seq_len=128 is longer than model.max_length=64"),
        ("train --config.model.family=encoder", "holds a model.family=decoder"),
        ("convert --to=text.txt", "text.txt is there already"),
        ("convert --to=model", "model is there already"),
    ],
)  # fmt: skip
def test_what_does_not_fit(words, expected, capsys):
    """Lengths beyond the positions, files that cannot be read or would be lost, wrong words."""
    command, _, more = words.partition(" ")
    make_encoder(Path("model")) if command == "embed" else make_decoder(Path("model"))
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"\xfcbel\n")
    capsys.readouterr()
    refused(f"{COMMANDS[command]} {more}", expected, capsys)


@pytest.mark.slow
def test_a_special_token_without_a_row_is_harmless(capsys):
    """Gemma 3's tokenizer has one for images, which the text model lacks: no text becomes it."""
    make_decoder(Path("model"))
    Path("text.txt").write_text("of <image> words " * 300)
    said, losses = [], []
    for run in ("before", "after"):
        words = COMMANDS["train"].replace("=new", f"={run}").split()
        assert cli.main([*words, "--config.generate.max_new_tokens=4"]) == 0
        losses.append([record["loss"] for record in read_records(run)])
        assert cli.main(["evaluate", "--from=model", "--config=experiment.py"]) == 0
        capsys.readouterr()
        assert cli.main(["perplexity", "--from=model", "--text=text.txt"]) == 0
        assert cli.main([*COMMANDS["generate"].split(), "--prompt", "of <image> words"]) == 0
        said.append(capsys.readouterr().out.split("\n", 1)[1])  # the first line tells the time
        add_tokens("<image>", special=True)
    assert said[0] == said[1] and losses[0] == losses[1]


def test_a_prompt_longer_than_the_positions(capsys):
    make_decoder(Path("model"))
    words = ["generate", "--from=model", "--prompt", "word " * 200]
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert "exceed model.max_length=64; shorten the prompt" in said.err and said.out == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("embed --text=text.txt --out=new.npy", "embed needs --workdir, a run, or --from"),
        ("embed --from=model --out=new.npy", "embed needs --text"),
        ("embed --from=model --text=text.txt", "embed needs --out"),
        ("generate --from=model", "generate needs --prompt"),
        ("perplexity --from=model", "perplexity needs --text"),
        ("perplexity --form=model", "did you mean '--from'"),
    ],
)
def test_what_is_missing_is_named(words, expected, capsys):
    refused(words, expected, capsys)


def test_a_run_is_no_published_folder(capsys):
    Path("run/checkpoints").mkdir(parents=True)
    refused("generate --from=run --prompt=a", "give --workdir=run", capsys)


def test_a_model_of_another_kind(capsys):
    make_encoder(Path("model"))
    for command in ("generate", "perplexity"):
        refused(COMMANDS[command], "use a decoder", capsys)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_no_number_is_taken_for_none(dtype, tmp_path, monkeypatch):
    """The largest and smallest numbers of each type pass; NaN and infinities are counted."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    info = ml_dtypes.finfo(kind)
    good = np.array([0, -0.0, info.max, info.min, info.tiny, info.smallest_subnormal], kind)
    monkeypatch.setattr(finite, "_CHUNK", 64)  # several chunks, the last one not full
    whole = np.resize(good, 101).reshape(101, 1)
    make_tokenizer(tmp_path)
    save_file({"h.0.a": whole, "h.1.a": whole, "i": np.full(9, -1)}, tmp_path / WEIGHTS.name)
    finite.refuse(tmp_path)
    for place, value in ((3, np.nan), (100, -np.nan), (64, np.inf), (0, -np.inf)):
        bad = whole.copy()
        bad[place] = value
        save_file({"h.0.a": bad, "h.1.a": bad, "b": whole}, tmp_path / WEIGHTS.name)
        with pytest.raises(cli.UserError, match=r"'h.\*.a' .* in 2 of its 202 numbers"):
            finite.refuse(tmp_path)
