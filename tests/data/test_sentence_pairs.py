"""Sentence pairs: what follows follows, what was drawn was drawn fairly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxformer.errors import UserError
from tests.data.conftest import assert_same, words_tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Every word tells where it stands: d3s2w1 is word 1 of sentence 2 of document 3.
TEXT = [
    [" ".join(f"d{d}s{s}w{w}" for w in range(1 + (d + s) % 4)) for s in range(1 + 3 * d % 8)]
    for d in range(40)
]


@pytest.fixture
def loaded(load, tmp_path):
    """`loaded(**config)`: the documents above, one of them with lines, the others with stops."""
    words = [w for d in TEXT for s in d for w in (*s.split(" ")[:-1], *[s.split(" ")[-1] + "."])]
    tokenizer = words_tokenizer(tmp_path / "t.json", SPECIALS, words=words)
    parts = [" ".join(f"{s}." for s in d) for d in TEXT]
    parts[5] = "\n".join(f"{s}." for s in TEXT[5])
    (tmp_path / "x.txt").write_text("\n\n".join(parts))
    return lambda **config: load(
        tmp_path / "x.txt", layout="sentence_pairs", tokenizer=str(tokenizer), **config
    )


def told(dataset, batch, row):
    """The two texts of a row as lists of (document, sentence)."""
    tokens, types = batch["tokens"][row], batch["token_types"][row]
    real = batch["segment_ids"][row] > 0
    ends = np.flatnonzero((tokens == 3) & real)
    assert (tokens[0], len(ends), ends[1]) == (2, 2, real.sum() - 1)
    assert not types[: ends[0] + 1].any()
    assert types[ends[0] + 1 : ends[1] + 1].all()
    texts = []
    for part in (tokens[1 : ends[0]], tokens[ends[0] + 1 : ends[1]]):
        words = [dataset.tokenizer.decode([i]).rstrip(".") for i in part]
        places = [tuple(map(int, w[1:].replace("s", " ").replace("w", " ").split())) for w in words]
        texts.append([key for key, _ in itertools.groupby((d, s) for d, s, _ in places)])
    return texts


@pytest.mark.parametrize("task", ["next", "order"])
@pytest.mark.parametrize("seq_len", [12, 40])
def test_labels_are_true(loaded, task, seq_len):
    dataset = loaded(pair_task=task, seq_len=seq_len, batch_size=8)
    name = {"next": "next_sentence", "order": "order"}[task]
    labels = []
    for step in range(40):
        batch = dataset.train.batch(step, 1)
        assert batch[name].dtype == np.int32
        for row in range(8):
            first, second = told(dataset, batch, row)
            label = batch[name][row]
            labels.append(label)
            for part in (first, second):  # whole runs of one document
                assert part
                assert len({d for d, _ in part}) == 1
                assert all(b[1] == a[1] + 1 for a, b in itertools.pairwise(part))
            if task == "next" and label:
                assert first[0][0] != second[0][0]
            else:
                before, after = (second, first) if label else (first, second)
                assert before[-1][0] == after[0][0]
                assert before[-1][1] + 1 == after[0][1]
    assert abs(np.mean(labels) - 0.5) < 0.1


def test_every_sentence_of_longer_documents_comes(loaded):
    dataset = loaded(pair_task="order", seq_len=12)
    seen = set()
    for step in range(dataset.train.num_batches):
        batch = dataset.train.batch(step, 0)
        for row in range(4):
            seen.update(*told(dataset, batch, row))
    train = dataset.documents("train")[0].text
    wanted = {
        (d, s) for d, sentences in enumerate(TEXT) for s in range(len(sentences))
        if len(sentences) > 1 and f"d{d}s{s}w" in train and f"d{d}s{len(sentences) - 1}w" in train
    }  # fmt: skip
    assert len(wanted) > 60
    assert wanted <= seen


def test_epochs_draw_anew_and_validation_does_not(loaded):
    dataset = loaded(seq_len=40, batch_size=4)
    rows = dataset.train.num_rows
    seen = {}
    for step in range(6 * rows // 4):
        batch = dataset.train.batch(step, 0)
        for tokens, label in zip(batch["tokens"], batch["next_sentence"]):
            seen.setdefault(label, set()).add(tokens.tobytes())
    assert len(seen[0] | seen[1]) > 3 * rows
    split = dataset.validation
    for step in range(split.num_batches):
        assert_same(split.batch(step, 1), split.batch(step, 2))
    last = split.batch(split.num_batches - 1)
    assert ((last["next_sentence"] == -1) == (last["segment_ids"].max(1) == 0)).all()


def test_mistakes_are_told(load, tmp_path, loaded):
    (tmp_path / "one.txt").write_text("One. Two. Three. " * 30)
    with pytest.raises(UserError, match="two documents") as error:
        load(tmp_path / "one.txt", layout="sentence_pairs", seq_len=40)
    assert "\n" not in str(error.value)
    assert load(tmp_path / "one.txt", layout="sentence_pairs", pair_task="order", seq_len=40)
    with pytest.raises(UserError, match="seq_len=5 or more"):
        loaded(seq_len=4)
    with pytest.raises(UserError, match="did you mean 'order'"):
        loaded(pair_task="orders")
