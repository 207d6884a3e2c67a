"""The cache: hit without reading, rebuilt when damaged, whole whoever writes at once."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jaxformer import data
from jaxformer.data import build, cache, documents, sources


def everything(dataset):
    return [dataset.train.batch(step, 1) for step in range(3)]


def same(a, b):
    return all(np.array_equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


def entry_folder(root):
    (meta,) = root.glob("*/meta.json")
    return meta.parent


def test_a_second_start_reads_no_text(load, folder, monkeypatch):
    first = load(f"{folder}/*/*.txt", tokenizer="bpe:300")

    def forbidden(*args, **kwargs):
        raise AssertionError("read again")

    monkeypatch.setattr(documents, "read", forbidden)
    monkeypatch.setattr(sources.Source, "content_key", forbidden)
    monkeypatch.setattr(build, "fill", forbidden)
    second = load(f"{folder}/*/*.txt", tokenizer="bpe:300")
    assert second.info == first.info
    assert same(everything(first), everything(second))
    assert second.tokenizer.encode("the house") == first.tokenizer.encode("the house")


def test_opening_imports_nothing_heavy(load, text_file, tmp_path):
    load(text_file, tokenizer="bpe:300")
    code = (
        "import sys; from jaxformer import data\n"
        f"c = data.Config(source={str(text_file)!r}, tokenizer='bpe:300', seq_len=32,"
        f" batch_size=4, cache_dir={str(tmp_path / 'cache')!r})\n"
        "data.load(c, say=lambda line: 1 / 0).train.batch(0, 0)\n"
        "heavy = {'jax', 'tokenizers', 'datasets', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_touched_file_is_read_but_not_tokenised_again(load, folder, monkeypatch):
    first = load(f"{folder}/*/*.txt")
    (folder / "left" / "00.txt").touch()
    monkeypatch.setattr(build, "fill", None)
    assert load(f"{folder}/*/*.txt").info == first.info


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_a_run_finds_the_tokens_of_the_tokenizer_that_it_made(load, folder, tmp_path, tokenizer):
    """`jaxformer evaluate` names the run's folder as the tokenizer: nothing is tokenised twice."""
    source = f"{folder}/*/*.txt"
    made = load(source, tokenizer=tokenizer)
    (tmp_path / "run").mkdir()
    made.tokenizer.save(tmp_path / "run")
    said: list[str] = []
    again = load(source, tokenizer=str(tmp_path / "run"), say=said.append)
    assert not said and again.info == made.info
    # And they are the tokens that the saved tokenizer makes.
    fresh = load(
        source, tokenizer=str(tmp_path / "run"), cache_dir=str(tmp_path / "b"), say=said.append
    )
    assert said and fresh.info == made.info


def test_changed_text_and_changed_choices_are_other_data(load, folder):
    first = load(f"{folder}/*/*.txt").info
    assert load(f"{folder}/*/*.txt", tokenizer="char").info.fingerprint != first.fingerprint
    assert load(f"{folder}/*/*.txt", seq_len=16, batch_size=2).info.fingerprint == first.fingerprint
    file = folder / "left" / "00.txt"
    file.write_text(file.read_text().replace("file 0", "file x"))
    assert load(f"{folder}/*/*.txt").info.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "name", ["train.bin", "train.npz", "validation.bin", "meta.json", "tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_damage_is_seen_and_repaired(load, text_file, tmp_path, name, damage):
    first = load(text_file)
    before = everything(first)  # the file is mapped: to shorten it under a reader is fatal
    file = entry_folder(tmp_path / "cache") / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "truncate":
        content = content[:-1]
    else:
        content = bytearray()
    file.write_bytes(content)
    if damage == "remove":
        file.unlink()
    told = []
    second = load(text_file, say=told.append)
    assert any("tokenis" in line for line in told)
    assert second.info == first.info
    assert same(before, everything(second))
    load(text_file, say=lambda line: pytest.fail("made again"))
    assert [path.name for path in (tmp_path / "cache").iterdir() if "tmp" in path.name] == []


def test_a_damaged_index_is_only_slower(load, text_file, tmp_path):
    first = load(text_file)
    for file in (tmp_path / "cache" / "index").iterdir():
        file.write_text("{")
    assert load(text_file, say=lambda line: pytest.fail("made again")).info == first.info


def test_processes_at_once(folder, tmp_path):
    """Four processes make the same entry; each gets the same data, and one entry stays."""
    code = (
        "from jaxformer import data\n"
        f"c = data.Config(source={str(folder) + '/*/*.txt'!r}, tokenizer='bpe:300', seq_len=32,"
        f" cache_dir={str(tmp_path / 'cache')!r})\n"
        "d = data.load(c, say=lambda line: None)\n"
        "print(d.info.fingerprint, d.train.batch(3, 1)['tokens'].sum())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0] * 4
    assert len(answers) == 1
    assert entry_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_another_process_was_faster(load, text_file, tmp_path, monkeypatch):
    """The entry appears while we make ours: theirs is used, ours goes."""
    fill = build.fill

    def slow(folder, *args):
        monkeypatch.setattr(build, "fill", fill)
        load(text_file)
        return fill(folder, *args)

    monkeypatch.setattr(build, "fill", slow)
    load(text_file)
    assert entry_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_a_failure_leaves_nothing_behind(load, tmp_path, folder):
    with pytest.raises(data.pipeline.UserError):
        load(folder / "left" / "00.txt", layout="padded", labels="package")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(data.pipeline.UserError, match="holds no text"):
        load(empty)
    assert not list((tmp_path / "cache").glob("*"))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path))
    assert data.Config().cache_folder().is_relative_to(tmp_path)
    monkeypatch.delenv("JAXFORMER_CACHE")
    assert data.Config(cache_dir="x").cache_folder().name == "x"
    assert data.Config().cache_folder().parent.name == "jaxformer"


def test_an_unwritable_cache_is_one_line(text_file, tmp_path):
    (tmp_path / "file").write_text("")
    config = data.Config(source=str(text_file), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(data.pipeline.UserError, match=r"data\.cache_dir"):
        data.load(config, say=lambda line: None)


def test_digest_depends_on_all_of_it():
    assert cache.digest([1, "a"]) == cache.digest([1, "a"])
    assert cache.digest([1, "a"]) != cache.digest([1, "b"])
