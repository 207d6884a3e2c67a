"""Layouts keep every token, in its place, and say truly which tokens belong together."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts import Packed, Padded, Windows
from jaxformer.data.tokenizers import Template

PAD = 0
SINGLE = Template((1,), (), (2,), (0,), suffix_types=(0,))
PAIR = Template((1,), (2,), (2,), (0,), 0, (0,), 1, (1,))
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


def corpus(lengths, first=None):
    """Documents of these lengths whose tokens are 10, 11, 12, … through the whole stream."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = np.array(lengths if first is None else first, np.int32)
    labels = np.arange(len(lengths), dtype=np.int32)
    return Corpus(10 + np.arange(offsets[-1]).astype(np.uint16), offsets, first, labels)


def every_row(layout):
    return layout.gather(np.arange(layout.num_rows), np.zeros(layout.num_rows, np.int64))


def documents(data):
    return [data.tokens_N[a:b].tolist() for a, b in zip(data.offsets_J, data.offsets_J[1:])]


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seq_len=st.integers(1, 12))
def test_packed_rows_are_the_documents(lengths, seq_len):
    """Unpacking by segment gives the pieces of the documents, targets the tokens that follow."""
    data = corpus(lengths)
    batch = every_row(Packed(data, seq_len, PAD))
    got, targets = [], []
    for row in range(len(batch["tokens"])):
        ids = batch["segment_ids"][row]
        assert (np.diff(ids[ids > 0]) >= 0).all()
        assert set(ids[ids > 0]) == set(range(1, ids.max() + 1))
        for segment in range(1, ids.max() + 1):
            inside = ids == segment
            got.append(batch["tokens"][row][inside].tolist())
            np.testing.assert_array_equal(batch["positions"][row][inside], range(inside.sum()))
            targets += [
                (int(token), int(target))
                for token, target, weight in zip(
                    *(batch[name][row][inside] for name in ("tokens", "targets", "weights"))
                )
                if weight
            ]
        assert (batch["tokens"][row][ids == 0] == PAD).all()
        assert (batch["weights"][row][ids == 0] == 0).all()
    expected = [d[i : i + seq_len] for d in documents(data) for i in range(0, len(d), seq_len)]
    assert sorted(got) == sorted(expected)
    pairs = [(a, b) for d in documents(data) for a, b in itertools.pairwise(d)]
    assert sorted(targets) == sorted(pairs)


@settings(max_examples=100, deadline=None)
@given(total=st.integers(2, 200), seq_len=st.integers(1, 20), data=st.data())
def test_evaluation_windows_score_every_token_once(total, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    layout = Windows(corpus([total]), seq_len, stride, PAD)
    batch = every_row(layout)
    scored = batch["weights"] > 0
    np.testing.assert_array_equal(np.sort(batch["targets"][scored]), 11 + np.arange(total - 1))
    np.testing.assert_array_equal(batch["targets"][scored], batch["tokens"][scored] + 1)
    if total > seq_len:
        assert (batch["segment_ids"] == 1).all()
        context = np.where(scored, batch["positions"], seq_len)[1:]  # but the first window
        assert context.min(initial=seq_len) >= seq_len - stride
    np.testing.assert_array_equal(
        batch["positions"], np.broadcast_to(np.arange(seq_len), batch["tokens"].shape)
    )


@settings(max_examples=100, deadline=None)
@given(total=st.integers(2, 200), seq_len=st.integers(1, 20), data=st.data())
def test_training_windows_never_overlap_nor_leave_the_stream(total, seq_len, data):
    layout = Windows(corpus([total]), seq_len, 0, PAD)
    if total <= seq_len:
        assert layout.num_rows == 0
        return
    shift = data.draw(st.integers(0, layout.max_shift))
    rows = np.arange(layout.num_rows)
    batch = layout.gather(rows, np.full_like(rows, shift))
    expected = 10 + shift + np.arange(layout.num_rows * seq_len)
    np.testing.assert_array_equal(batch["tokens"].ravel(), expected)
    np.testing.assert_array_equal(batch["targets"].ravel(), expected + 1)
    assert (batch["weights"] == 1).all()
    assert batch["targets"].max() < 10 + total


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seq_len=st.integers(4, 12), cut=st.booleans())
def test_padded_rows_are_wrapped_texts(lengths, seq_len, cut):
    data = corpus(lengths)
    batch = every_row(Padded(data, seq_len, SINGLE, PAD, pairs=False, cut=cut))
    room, expected = seq_len - 2, []
    for label, text in enumerate(documents(data)):
        parts = [text[i : i + room] for i in range(0, len(text), room)] if cut else [text[:room]]
        expected += [([1, *part, 2], label) for part in parts]
    assert len(batch["tokens"]) == len(expected)
    for row, (tokens, label) in enumerate(expected):
        n = len(tokens)
        assert batch["tokens"][row].tolist() == tokens + [0] * (seq_len - n)
        assert batch["segment_ids"][row].tolist() == [1] * n + [0] * (seq_len - n)
        assert batch["positions"][row].tolist() == [*range(n)] + [0] * (seq_len - n)
        assert batch["targets"][row][: n - 1].tolist() == tokens[1:]
        assert batch["weights"][row].tolist() == [1] * (n - 1) + [0] * (seq_len - n + 1)
        assert batch["labels"][row] == label


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9))
def test_pairs_share_a_row_and_the_longer_loses_its_end(pairs):
    pairs = [*pairs, (3, 3)]
    data = corpus([a + b for a, b in pairs], [a for a, _ in pairs])
    batch = every_row(Padded(data, 13, PAIR, PAD, pairs=True, cut=False))
    for row, (a, _) in enumerate(pairs):
        text = documents(data)[row]
        first, second = text[:a], text[a:]
        while len(first) + len(second) > 10:
            longer = first if len(first) > len(second) else second
            longer.pop()
        tokens = [1, *first, 2, *second, 2]
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        padding = [0] * (13 - len(tokens))
        assert batch["tokens"][row].tolist() == tokens + padding
        assert batch["token_types"][row].tolist() == types + padding
        assert batch["segment_ids"][row].tolist() == [1] * len(tokens) + padding


def test_without_special_tokens_texts_stand_bare():
    batch = every_row(Padded(corpus([3]), 5, Template(), PAD, pairs=False, cut=True))
    assert batch["tokens"].tolist() == [[10, 11, 12, 0, 0]]
