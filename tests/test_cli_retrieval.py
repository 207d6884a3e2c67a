"""Commands with a memory on disk, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxformer import cli
from jaxformer.evaluate import likelihood, passages
from tests.conftest import REPOSITORY
from tests.test_cli_models import TEXT, make_decoder, make_encoder

EXPERIMENTS = REPOSITORY / "experiments"
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
    config = str(EXPERIMENTS / "quickstart.py")
    run("train", f"--config={config}", "--workdir=runs/x", *QUICK)
    said = run("datastore", "--workdir=runs/x", "--out=store", "--max_tokens=512")
    assert "keys of width 16 from train split of text.txt" in said
    said = run("perplexity", "--workdir=runs/x", "--datastore=store", "--max_length=16",
               "--max_tokens=128", "--neighbours=4")  # fmt: skip
    assert said.startswith("validation split of text.txt with ")
    assert "perplexity of the second half" in said and said.count("*") == 1
    refused("datastore", "--workdir=runs/x", "--out=store", says="is there already")


@pytest.mark.slow
def test_runs_can_be_encoder_and_writer(run):
    make_texts()
    for name, of in (("bert_mlm", "reader"), ("quickstart", "writer")):
        config = str(EXPERIMENTS / f"{name}.py")
        run(
            "train", f"--config={config}", f"--workdir={of}", *QUICK, "--config.model.max_length=64"
        )
    run("index", "--workdir=reader", "--text=texts", "--out=index", "--pooling=first", "--words=5")
    said = run("generate", "--workdir=writer", "--retrieve=index", "--prompt=line 3", "--top=9")
    assert said.startswith("line 3") and 0 < said.count(".txt:") < 9  # not all nine fit


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


def make_texts() -> None:
    Path("texts").mkdir()
    for i in range(6):
        lines = [f"line {i * 10 + j} of file {i}, {j} words long." for j in range(10)]
        Path("texts", f"{i}.txt").write_text("\n".join(lines))
    Path("texts", "x.bin").write_bytes(b"\xff\x00")


def test_passages_stand_before_the_question_and_their_places_after_the_text(run, capsys):
    make_texts()
    bert, gpt2 = make_encoder(Path("bert")), make_decoder(Path("gpt2"))
    said = run(
        "index", "--from=bert", "--text=texts", "--out=index", "--words=9", "--max_length=64"
    )
    assert said.startswith("index: 60 passages of 6 files (1 skipped: not UTF-8 text), in ")
    question = "line 34 of file 3"
    asked = ["generate", "--from=gpt2", "--retrieve=index", "--top=2", f"--prompt={question}",
             "--config.generate.max_new_tokens=8"]  # fmt: skip
    said = run(*asked)

    index = passages.open_index("index")
    found = passages.retrieve("index", index, *bert, [question], 2)[0]
    sources = [f"  {passage.file}:{passage.line}  {passage.score:.3f}" for passage in found]
    assert said.startswith(question) and said.endswith("\n\n" + "\n".join(sources) + "\n")
    # The text is that of the prompt with the passages.
    prompt = "\n\n".join([*(passage.text for passage in found), question])
    assert len(gpt2[2].encode(prompt)) + 8 <= 64
    alone = run(*asked[:2], f"--prompt={prompt}", asked[-1])
    assert said == question + alone.removeprefix(prompt) + "\n" + "\n".join(sources) + "\n"
    other = run(*asked, "--template={question}\\n{passages}", "--prompt=file 5")
    assert other.count("\n  ") == 4 and "\n\nfile 5" in other

    Path("bert").rename("moved")
    assert cli.main(asked) == 2
    error = capsys.readouterr().err
    assert "its encoder cannot be loaded" in error and error.count("\n") == 1
    assert run(*asked, "--encoder=moved") == said


def test_mistakes_with_an_index_are_told_in_one_line(refused, run):
    make_texts()
    make_encoder(Path("bert"))
    make_decoder(Path("gpt2"))
    Path("empty").mkdir()
    made = ["index", "--from=bert", "--text=texts"]
    refused(*made, says="index needs --out")
    refused(*made[:2], "--out=index", says="index needs --text")
    refused(*made[:2], "--text=empty", "--out=index", says="has no text to cut")
    refused(*made[:2], "--text=text.txt", "--out=index", says="is no folder")
    refused(*made, "--out=index", "--words=5", "--overlap=9", says="--overlap=9")
    refused(*made, "--out=index", "--overlap=x", says="--overlap=x")
    refused(*made, "--out=gpt2", says="is there already")
    run(*made, "--out=index")
    asked = ["generate", "--from=gpt2", "--prompt=a"]
    refused(*asked, "--top=3", says="--retrieve")
    refused(*asked, "--retrieve=gpt2", says="no meta.json")
    refused(*asked, "--retrieve=index", "--template=x", says="{passages}")
    refused(*asked, "--retrieve=index", "--encoder=gpt2", says="another model")
    assert not list(Path().glob("*unfinished*"))
