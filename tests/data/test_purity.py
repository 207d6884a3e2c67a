"""Of the layouts that need data of their own: a batch depends on (seed, step, rows) alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.conftest import assert_same, prose, write_rows

LAYOUTS = {
    "seq2seq": {"layout": "seq2seq", "target_field": "b"},
    "seq2seq_packed": {"layout": "seq2seq_packed", "target_field": "b", "source_len": 24},
    "pairs": {"layout": "padded", "text_pair_field": "b", "labels": "value"},
    "left": {"layout": "padded", "pad_left": True, "labels": "field", "label_field": "class"},
    "tags": {"layout": "padded", "labels": "tags"},
    "qa": {"layout": "qa", "max_question": 10, "doc_stride": 5},
    "sentence_pairs": {"layout": "sentence_pairs"},
    "sentence_order": {"layout": "sentence_pairs", "pair_task": "order"},
}


@pytest.fixture
def rows(tmp_path):
    """A file whose rows serve every layout."""
    found = []
    for i in range(80):
        text = prose(i, 4 + i % 3)
        lines = prose(i, 12).replace("\n", ". ") + ". End."
        found.append({
            "text": lines, "b": f"{text} {i}", "label": i / 3, "class": i % 2,
            "tokens": text.split(), "tags": [w[0] for w in text.split()],
            "id": i, "question": text, "context": lines, "title": f"T{i % 20}",
            "answers": {"answer_start": [0], "text": [lines.split()[0]]},
        })  # fmt: skip
    return write_rows(tmp_path / "rows.jsonl", found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_batches(load, rows, layout, split):
    options = {"batch_size": 6, "seq_len": 40, "tokenizer": "bpe:300", **LAYOUTS[layout]}
    first = getattr(load(rows, **options), split)
    again = getattr(load(rows, say=lambda line: None, **options), split)  # as after a restart
    for step in {0, first.num_batches - 1}:
        whole = first.batch(step, 5)
        assert_same(whole, again.batch(step, 5))
        parts = [first.batch(step, 5, slice(i, i + 2)) for i in (0, 2, 4)]
        assert_same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
        shapes = {name: (array.shape, array.dtype) for name, array in whole.items()}
        assert shapes == {n: (a.shape, a.dtype) for n, a in first.batch(0, 0).items()}
        assert all(dtype in (np.int32, np.float32) for _, dtype in shapes.values())
        for ids in {"segment_ids", "source_segment_ids"} & set(whole):
            name = {"segment_ids": "tokens"}.get(ids, "source")
            assert (whole[name] < 400).all()
    one, other = (first.batch(0, seed)["tokens"] for seed in (1, 2))
    assert (one == other).all() == (split == "validation")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_start_is_the_same_and_reads_no_text(load, rows, layout, monkeypatch):
    from jaxformer.data import build, documents

    options = {"seq_len": 40, "tokenizer": "bpe:300", **LAYOUTS[layout]}
    first = load(rows, **options)
    monkeypatch.setattr(documents, "read", None)
    monkeypatch.setattr(build, "fill", None)
    second = load(rows, **options)
    assert second.info == first.info
    assert_same(first.train.batch(3, 1), second.train.batch(3, 1))
    # What is only laid out otherwise is not tokenised again.
    load(rows, **{**options, "seq_len": 44, "batch_size": 3})


@pytest.mark.parametrize("layout", ["seq2seq_packed", "tags", "qa"])
def test_an_epoch_shows_every_row_once(load, rows, layout):
    options = {"batch_size": 3, "seq_len": 40, **LAYOUTS[layout]}
    split = load(rows, **options).train
    n = split.num_rows
    seen = np.concatenate([split.batch(step, 2)["tokens"] for step in range(n // 3 + 1)])[:n]
    every = split.layout.gather(np.arange(n), np.zeros(n, int))["tokens"]
    assert sorted(map(bytes, seen)) == sorted(map(bytes, every))
