"""Batches depend on (seed, step) alone; splits share nothing; all of it is seen once."""

from __future__ import annotations

import collections
import math
import threading

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer import data
from jaxformer.errors import UserError
from tests.data.conftest import assert_same

LAYOUTS = {
    "windows": {"layout": "windows"},
    "packed": {"layout": "packed", "tokenizer": "bpe:300"},
    "padded": {"layout": "padded", "snippet_lines": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_a_function_of_seed_and_step(load, folder, layout):
    dataset = load(f"{folder}/*/*.txt", **LAYOUTS[layout])
    steps = [7, 0, 3, 1000]
    first = {step: dataset.train.batch(step, seed=5) for step in steps}
    again = load(f"{folder}/*/*.txt", **LAYOUTS[layout])  # as after a restart
    for step in reversed(steps):
        assert_same(first[step], again.train.batch(step, seed=5))
    assert (first[0]["tokens"] != dataset.train.batch(0, seed=6)["tokens"]).any()
    assert (first[0]["tokens"] != first[3]["tokens"]).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_processes_load_the_rows_of_the_global_batch(load, folder, layout, split):
    split = getattr(load(f"{folder}/*/*.txt", batch_size=6, **LAYOUTS[layout]), split)
    for step in {0, split.num_batches - 1}:
        whole = split.batch(step, 1)
        parts = [split.batch(step, 1, slice(i, i + 2)) for i in (0, 2, 4)]
        assert_same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
        np.testing.assert_array_equal(whole["rows"], range(6))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_and_types(load, folder, layout):
    dataset = load(f"{folder}/*/*.txt", **LAYOUTS[layout])
    for split in (dataset.train, dataset.validation):
        batch = split.batch(0, 0)
        assert ("segment_ids" in batch) == (layout != "windows" or split is dataset.validation)
        for name in {"tokens", "targets", "segment_ids", "positions"} & set(batch):
            assert batch[name].shape == (4, 32)
            assert batch[name].dtype == np.int32
        assert batch["weights"].shape == (4, 32)
        assert batch["weights"].dtype == np.float32
        assert batch["rows"].dtype == np.int32
        assert batch["tokens"].max() < dataset.info.vocab_size
        assert "labels" not in batch


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_an_epoch_shows_every_row_once(load, folder, layout):
    split = load(f"{folder}/*/*.txt", batch_size=3, **LAYOUTS[layout]).train
    n = split.num_rows
    batches = [split.batch(step, 2)["tokens"] for step in range(2 * n // 3 + 1)]
    rows = [row.tobytes() for row in np.concatenate(batches)]
    epochs = [collections.Counter(rows[:n]), collections.Counter(rows[n : 2 * n])]
    every = split.layout.gather(np.arange(n), np.zeros(n, int))["tokens"]
    assert epochs[0] == epochs[1] == collections.Counter(row.tobytes() for row in every)
    assert rows[:n] != rows[n : 2 * n]


def test_epochs_of_windows_cut_the_stream_elsewhere(load, text_file):
    split = load(text_file).train
    n = split.num_rows
    firsts = [
        {split.batch(step, 0, slice(0, 1))["tokens"].tobytes() for step in range(e * n, e * n + n)}
        for e in range(2)
    ]
    assert not firsts[0] & firsts[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validation_is_seen_once_and_the_last_batch_filled_with_nothing(load, folder, layout):
    dataset = load(f"{folder}/*/*.txt", batch_size=7, **LAYOUTS[layout])
    split, info = dataset.validation, dataset.info
    batches = [split.batch(step) for step in range(split.num_batches)]
    weights = sum(batch["weights"].sum() for batch in batches)
    real = sum((batch["segment_ids"] > 0).any(1).sum() for batch in batches)
    assert real == split.num_rows
    if layout == "windows":
        assert weights == info.validation_tokens - 1
    elif layout == "packed":  # all but the first token of each document
        assert weights == info.validation_tokens - info.validation_documents
    else:  # [CLS] predicts the first, the last predicts [SEP]
        assert weights == info.validation_tokens + split.num_rows
    assert_same(batches[0], split.batch(0, seed=9))
    with pytest.raises(IndexError):
        split.batch(split.num_batches)


@pytest.mark.parametrize("stride", [0, 1, 8, 32])
def test_overlapping_windows_score_the_same_tokens(load, text_file, stride):
    dataset = load(text_file, eval_stride=stride)
    scored = []
    for step in range(dataset.validation.num_batches):
        batch = dataset.validation.batch(step)
        scored += batch["targets"][batch["weights"] > 0].tolist()
    text = text_file.read_text()
    held_out = text[int(len(text) * 0.9) :].encode()
    assert scored == [*held_out[1:], dataset.info.eos_id]


def test_splits_share_no_file(load, folder):
    dataset = load(f"{folder}/*/*.txt", layout="packed", seq_len=4096, batch_size=1)
    texts = {}
    for name in ("train", "validation"):
        split = getattr(dataset, name)
        rows = split.layout.gather(np.arange(split.num_rows), np.zeros(split.num_rows, int))
        text = "".join(
            dataset.tokenizer.decode(row[ids > 0], specials=True)
            for row, ids in zip(rows["tokens"], rows["segment_ids"])
        )
        texts[name] = set(text.split("<eos>")) - {""}
    assert len(texts["train"]) == 18
    assert len(texts["validation"]) == 2  # one of each folder
    assert texts["train"] | texts["validation"] == {f.read_text() for f in folder.glob("*/*.txt")}


def test_pretraining_and_classifying_hold_out_the_same_files(load, tmp_path):
    for i in range(60):
        file = tmp_path / "lib" / f"package{i % 3}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<{i}> " + "word " * 2000)
    source, settings = f"{tmp_path}/lib/*/*.txt", {"layout": "padded", "seq_len": 16}

    def held_out(dataset):
        rows = range(dataset.validation.num_batches)
        tokens = np.concatenate([dataset.validation.batch(step)["tokens"] for step in rows])
        return {text for row in tokens if (text := dataset.tokenizer.decode(row))[0] == "<"}

    one = held_out(load(source, **settings))
    assert one == held_out(load(source, labels="package", **settings))
    assert len(one) == 6


def test_packages_are_classes(load, tmp_path):
    for i in range(40):
        file = tmp_path / "lib" / ("few" if i < 2 else f"package{i % 2}") / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{'ab'[i % 2]} " * 5000)
    dataset = load(f"{tmp_path}/lib/*/*.txt", layout="padded", labels="package")
    assert dataset.info.class_names == ("package0", "package1")
    assert dataset.info.num_classes == 2
    assert dataset.info.majority == pytest.approx(0.5, abs=0.01)
    for split in (dataset.train, dataset.validation):
        batch = split.batch(0, 0)
        for row, label in zip(batch["tokens"], batch["labels"]):
            assert set(dataset.tokenizer.decode(row)) - {" "} == {"ab"[label]}
    last = dataset.validation.batch(dataset.validation.num_batches - 1)
    empty = last["segment_ids"].max(1) == 0
    np.testing.assert_array_equal(last["labels"] == -1, empty)


def test_info(load, text_file):
    info = load(text_file, tokenizer="char").info
    text = text_file.read_text()
    train = text[: int(len(text) * 0.9)]
    shares = [n / len(train) for n in collections.Counter(train).values()]
    assert info.unigram_entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert info.vocab_size == len(set(text))
    assert info.special_ids == ()
    assert info.eos_id == info.pad_id == -1
    assert (info.train_tokens, info.validation_tokens) == (len(train), len(text) - len(train))
    assert info.bytes_per_token == 1.0
    assert load(text_file, tokenizer="bpe:300").info.bytes_per_token > 1.5


def test_tiny_shakespeare_has_65_characters(load, shared_data):
    dataset = load(shared_data / "lm" / "tinyshakespeare.txt", tokenizer="char")
    assert dataset.info.vocab_size == 65
    assert (dataset.info.train_tokens, dataset.info.validation_tokens) == (1003854, 111540)


def test_a_run_s_tokenizer_serves_another_source(load, folder, text_file, tmp_path):
    first = load(f"{folder}/*/*.txt", tokenizer="bpe:300")
    first.tokenizer.save(tmp_path)
    second = load(text_file, tokenizer=str(tmp_path))
    assert second.info.vocab_size == first.info.vocab_size
    assert second.tokenizer.encode("the sea") == first.tokenizer.encode("the sea")


def test_a_validation_source_of_its_own(load, folder, text_file):
    dataset = load(text_file, validation_source=str(folder / "left" / "03.txt"))
    assert dataset.info.train_documents == dataset.info.validation_documents == 1
    text = (folder / "left" / "03.txt").read_bytes()
    assert dataset.info.validation_tokens == len(text) + 1


def test_fewer_rows_than_a_batch(load, text_file):
    with pytest.raises(UserError, match=r"data\.batch_size=4096") as error:
        load(text_file, batch_size=4096)
    assert "\n" not in str(error.value)


def test_prefetch_gives_the_batches_in_order_on_the_devices(load, text_file):
    split = load(text_file, batch_size=8).train
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    got = list(data.prefetch(split, 3, 8, 1, sharding))
    assert [step for step, _ in got] == [3, 4, 5, 6, 7]
    for step, batch in got:
        assert batch["tokens"].sharding.is_equivalent_to(sharding, 2)
        assert_same(split.batch(step, 1), jax.tree.map(np.asarray, batch))


def test_prefetch_raises_what_the_thread_raised_and_closes(load, text_file):
    split = load(text_file).validation
    steps = data.prefetch(split, 0, split.num_batches + 5, 0)
    with pytest.raises(IndexError):
        collections.deque(steps, maxlen=0)
    endless = data.prefetch(load(text_file).train, 0, 10**9, 0)
    next(endless)
    endless.close()
    assert "jaxformer-prefetch" not in [thread.name for thread in threading.enumerate()]
