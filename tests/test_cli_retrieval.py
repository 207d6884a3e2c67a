"""Commands with a memory on disk, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxformer import cli
from jaxformer.evaluate import likelihood
from tests.test_cli_models import TEXT, make_decoder, make_encoder

OTHER = "".join(f"line {i} of another text, {i} words long.\n" for i in range(30))
QUICK = ["--config.train.steps=2", "--config.train.eval_tokens=256", "--config.data.seq_len=16",
         "--config.data.tokenizer=byte", "--config.model.num_layers=1", "--config.model.width=16",
         "--config.model.num_heads=2", "--config.generate.max_new_tokens=2",
         "--config.data.source=text.txt"]  # fmt: skip


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("other.txt").write_text(OTHER)


@pytest.fixture
def run(capsys):
    """Runs a command; returns its output."""

    def call(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys):
    """Runs a command; asserts that one line tells what is wrong with it."""

    def call(*words: str, says: str) -> None:
        capsys.readouterr()
        assert cli.main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and says in error, error

    return call


def test_a_datastore_and_perplexity_with_it(run):
    gpt2 = make_decoder(Path("gpt2"))
    said = run("datastore", "--from=gpt2", "--text=text.txt", "--out=store", "--dtype=float32")
    count = len(gpt2[2].encode(TEXT))
    assert said.startswith(f"store: {count:,} keys of width 32 from text.txt, ")
    keys_ND = np.load("store/keys.npy")
    assert keys_ND.shape == (count, 32) and keys_ND.dtype == np.float32
    said = run("perplexity", "--from=gpt2", "--text=other.txt", "--datastore=store",
               "--neighbours=8", "--lambdas=0,0.5,1", "--temperature=1,20")  # fmt: skip
    first, *lines = said.splitlines()
    assert first.startswith(f"other.txt with {count:,} keys of store, in ")
    rows = {line.split()[0]: line for line in lines}
    assert {"0", "0.5", "1"} < set(rows) and said.count("*") == 1
    alone, mixed = float(rows["model"].split()[2]), float(rows["with"].split()[2])
    assert mixed < 0.5 * alone  # random weights know nothing; the store has seen the like
    whole = likelihood.perplexity(*gpt2, OTHER)["loss"]
    first_half = np.log(float(rows["0"].split()[1]))
    assert abs((first_half + np.log(alone)) / 2 - whole) < 0.1 * whole


@pytest.mark.slow
def test_of_a_run_the_training_split_is_kept_and_the_validation_split_is_scored(run, refused):
    config = str(Path(__file__).parent.parent / "experiments" / "quickstart.py")
    run("train", f"--config={config}", "--workdir=runs/x", *QUICK)
    said = run("datastore", "--workdir=runs/x", "--out=store", "--max_tokens=512")
    assert "keys of width 16 from train split of text.txt" in said
    said = run("perplexity", "--workdir=runs/x", "--datastore=store", "--max_length=16",
               "--max_tokens=128", "--neighbours=4")  # fmt: skip
    assert said.startswith("validation split of text.txt with ")
    assert "perplexity of the second half" in said and said.count("*") == 1
    refused("datastore", "--workdir=runs/x", "--out=store", says="is there already")


def test_mistakes_are_told_in_one_line(refused, run):
    make_decoder(Path("gpt2"))
    run("datastore", "--from=gpt2", "--text=text.txt", "--out=store", "--max_tokens=300")
    asked = ["perplexity", "--from=gpt2", "--text=other.txt"]
    refused("datastore", "--from=gpt2", "--text=text.txt", says="datastore needs --out")
    refused("datastore", "--from=gpt2", "--out=new", says="needs --text, a file")
    refused("datastore", "--from=gpt2", "--text=text.txt", "--out=store", says="is there already")
    refused(*asked, "--datastore=text.txt", says="is no folder")
    refused(*asked, "--datastore=gpt2", says="no meta.json")
    refused(*asked, "--datastore=store", "--lambdas=a", says="--lambdas=a: give numbers")
    refused(*asked, "--datastore=store", "--lambdas=2", says="from 0 to 1")
    refused(*asked, "--datastore=store", "--neighbours=0", says="--neighbours=0")
    refused(*asked, "--datastore=store", "--search=faizz", says="faiss")
    refused(*asked, "--neighbours=4", says="--datastore")
    make_decoder(Path("wide"), width=64)
    asked[1] = "--from=wide"
    refused(*asked, "--datastore=store", says="64 wide")
    make_encoder(Path("bert"))
    refused("datastore", "--from=bert", "--text=text.txt", "--out=new", says="a decoder")
    keys = Path("store/keys.npy")
    keys.write_bytes(keys.read_bytes()[:-100])
    refused("perplexity", "--from=gpt2", "--text=other.txt", "--datastore=store", says="damaged")
    assert not Path("new").exists()
