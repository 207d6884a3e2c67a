"""Corrupted batches: nothing is lost, rates are met, and rows depend on their keys alone."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data import corruption, order, tokenizers
from jaxformer.data.config import Config
from jaxformer.data.corruption import infilling, spans
from jaxformer.data.layouts import Ends
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError
from tests.data.conftest import assert_same, prose

ENDS = Ends((), (1,), (), (1,), 0)  # T5's: … </s>, and the decoder begins with padding
SENTINELS = tuple(range(999, 899, -1))
BARE = Template()
lengths = st.lists(st.integers(0, 60), min_size=1, max_size=6)


def rows(lengths, width, frame=BARE, pad=0):
    """A batch of rows of these lengths; row r's tokens are 100 r + 10, 100 r + 11, …."""
    tokens = np.full((len(lengths), width), pad, np.int32)
    segments = np.zeros_like(tokens)
    for row, length in enumerate(lengths):
        text = [*frame.prefix, *(100 * row + 10 + np.arange(length)), *frame.suffix]
        tokens[row, : len(text)], segments[row, : len(text)] = text, 1
    return {"tokens": tokens, "segment_ids": segments}


def keys(count, seed=0):
    return order.keys(seed, 1, 0, np.arange(count))


def real(batch, name, ids, row):
    where = batch[ids][row] > 0
    n = where.sum()
    assert where[:n].all()  # padding stands at the end
    assert not batch[name][row][n:].any()
    return batch[name][row][:n].tolist()


def check_teaching(batch, row, start):
    """The decoder's input is the target, moved; weights are its segment."""
    tokens, targets = (real(batch, name, "segment_ids", row) for name in ("tokens", "targets"))
    if targets:
        assert tokens == [start, *targets[:-1]]
    np.testing.assert_array_equal(batch["weights"][row], batch["segment_ids"][row])
    np.testing.assert_array_equal(batch["positions"][row][: len(targets)], range(len(targets)))
    return targets


@settings(max_examples=100, deadline=None)
@given(
    lengths=lengths, seed=st.integers(0, 999), rate=st.sampled_from([0.15, 0.5, 0.9]),
    mean=st.sampled_from([1.0, 3.0, 10.0]),
)  # fmt: skip
def test_spans_source_and_target_rebuild_the_text(lengths, seed, rate, mean):
    batch = rows(lengths, 60)
    made = spans.span_corruption(60, BARE, ENDS, SENTINELS, 0, rate, mean)(
        batch, keys(len(lengths), seed)
    )
    for row, length in enumerate(lengths):
        targets = check_teaching(made, row, 0)
        source = real(made, "source", "source_segment_ids", row)
        if not length:
            assert not source and not targets
            continue
        assert source.pop() == targets.pop() == 1
        hidden = {}
        for token in targets:
            if token in SENTINELS:
                hidden[token] = []
                current = hidden[token]
            else:
                current.append(token)
        assert list(hidden) == list(SENTINELS[: len(hidden)])  # <extra_id_0>, <extra_id_1> …
        assert [t for t in source if t in SENTINELS] == list(hidden)
        assert all(hidden.values())  # no span is empty
        rebuilt = [token for t in source for token in hidden.get(t, [t])]
        assert rebuilt == batch["tokens"][row][:length].tolist()
        noise, count = spans.counts(np.array(length), rate, mean)
        assert sum(map(len, hidden.values())) == noise
        assert len(hidden) == count
        if length > 1:
            assert noise == np.clip(np.round(length * rate), 1, length - 1)
            assert source[0] not in SENTINELS and source[-1] in SENTINELS


def test_the_lengths_of_t5():
    """512 tokens of source are 568 of text, and 114 of target (Raffel 2020; its own helper)."""
    assert corruption.raw_length(512) == (568, 114)
    for source_len in (16, 100, 511, 1024):
        raw, target = corruption.raw_length(source_len)
        make = spans.span_corruption(raw, BARE, ENDS, SENTINELS, 0)
        made = make({"tokens": np.ones((1, raw), np.int32)}, keys(1))
        assert made["source"].shape == (1, source_len)
        assert made["tokens"].shape == (1, target)
        assert made["source_segment_ids"].all() and made["segment_ids"].all()  # both are full
    assert corruption.raw_length(100, source_specials=2)[0] == corruption.raw_length(99)[0]
    with pytest.raises(UserError, match="too short"):
        corruption.raw_length(1)


def test_all_ways_to_part_a_text_are_equally_likely():
    """8 tokens, 3 taken out in 2 spans: 2 ways for these, 4 for the 5 that stay."""
    count = 4000
    made = spans.intervals(keys(count), np.full(count, 8), 8, 0.375, 1.5)
    _, seen = np.unique(made, axis=0, return_counts=True)
    assert len(seen) == 8
    assert ((seen - count / 8) ** 2 / (count / 8)).sum() < 30  # chi-square of 7 degrees: mean 7


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 999), rate=st.sampled_from([0.0, 0.3, 0.95]),
       mean=st.sampled_from([0.3, 3.0]))  # fmt: skip
def test_infilling_masks_as_many_tokens_as_asked(lengths, seed, rate, mean):
    frame = Template((5,), (), (6,))
    ends = Ends((5,), (6,), (5,), (6,), 6)
    batch = rows(lengths, 62, frame)
    make = infilling.text_infilling(62, frame, ends, 4, (), 0, rate, mean)
    made = make(batch, keys(len(lengths), seed))
    assert made["source"].shape == made["tokens"].shape == (len(lengths), 62)
    for row, length in enumerate(lengths):
        text = batch["tokens"][row][1 : 1 + length].tolist()
        targets, source = (
            check_teaching(made, row, 6), real(made, "source", "source_segment_ids", row),
        )  # fmt: skip
        if not length:
            assert not source and not targets
            continue
        assert targets == [5, *text, 6]
        assert (source[0], source[-1]) == (5, 6)
        kept = [token for token in source[1:-1] if token != 4]
        assert len(kept) == length - round(rate * length)
        places = [text.index(token) for token in kept]
        assert places == sorted(places)
        for a, b in itertools.pairwise(source):
            assert (a, b) != (4, 4)  # spans do not touch
        for a, b in itertools.pairwise(source[1:-1]):  # what is gone has a mask in its place
            if 4 not in (a, b):
                assert text.index(b) == text.index(a) + 1


def test_infilled_spans_are_poisson():
    drawn = [infilling.span_lengths(3000, 3.0, np.random.default_rng(i).random(3001), 7001)
             for i in range(20)]  # fmt: skip
    found = np.concatenate(drawn)
    assert sum(map(sum, drawn)) == 20 * 3000
    assert found.mean() == pytest.approx(3, abs=0.05)
    assert found.var() == pytest.approx(3, abs=0.15)
    assert (found == 0).mean() == pytest.approx(np.exp(-3), abs=0.01)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 999))
def test_sentences_change_places_whole(length, seed):
    text = np.arange(length)
    last = text % 7 == 3
    drawn = np.random.default_rng(seed).integers(0, 2**63, 41).astype(np.uint64)
    got = infilling.shuffled(text, last, drawn)
    starts = [0, *(i + 1 for i in range(length - 1) if last[i])]
    sentences = [text[a:b].tolist() for a, b in zip(starts, [*starts[1:], length])]
    cut = [got[0]]
    parts = []
    for token in got[1:].tolist():
        if token in starts:
            parts.append(cut)
            cut = []
        cut.append(token)
    assert sorted([*parts, cut]) == sentences


def test_sentences_are_shuffled_in_the_source_only():
    text = np.arange(10, 50)
    batch = {"tokens": np.tile(text, (200, 1)).astype(np.int32)}
    make = infilling.text_infilling(40, BARE, ENDS, 4, (19, 29, 39), 0, rate=0.0)
    made = make(batch, keys(200))
    np.testing.assert_array_equal(made["targets"][:, :-1], batch["tokens"])
    orders = {tuple(row[:40:10].tolist()) for row in made["source"]}
    assert len(orders) == 24  # all of them


def reach(blind):
    """Which token's content can come to which place, through any number of layers."""
    sees = ~blind | np.eye(len(blind), dtype=bool)
    for _ in range(8):
        sees = sees @ sees
    return sees


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths, seed=st.integers(0, 999), share=st.sampled_from([2.0, 6.0]),
    special=st.integers(1, 20),
)  # fmt: skip
def test_permutation_never_shows_what_it_asks(lengths, seed, share, special):
    batch = rows(lengths, 60)
    batch["tokens"][:, special::special] = 3  # functional tokens here and there
    make = corruption.permutation(60, (3,), 0, share)
    made = make(batch, keys(len(lengths), seed))
    P = round(60 / share)
    assert made["perm_mask"].shape == (len(lengths), 60, 60)
    assert made["target_mapping"].shape == (len(lengths), P, 60)
    for row, length in enumerate(lengths):
        text = batch["tokens"][row]
        able = int((text[:length] != 3).sum())
        wanted = min(able, P, max(1, round(able / share)))
        assert made["weights"][row].tolist() == [1] * wanted + [0] * (P - wanted)
        where = made["target_mapping"][row].argmax(1)[:wanted]
        np.testing.assert_array_equal(made["target_mapping"][row].sum(1), made["weights"][row])
        np.testing.assert_array_equal(made["targets"][row][:wanted], text[where])
        assert (np.diff(where) > 0).all()
        assert 3 not in made["targets"][row][:wanted]
        blind = made["perm_mask"][row]
        assert blind[:, length:].all()
        context = np.setdiff1d(np.flatnonzero(text[:length] != 3), where)
        assert not blind[:, context].any()  # all see what is not predicted
        comes = reach(blind)
        for target in where:
            assert blind[target, target]
            seen = np.flatnonzero(~blind[target])
            assert not comes[seen, target].any()
        # Of two predicted tokens, one sees the other.
        both = ~blind[np.ix_(where, where)]
        assert (both ^ both.T | np.eye(wanted, dtype=bool)).all()


def test_permutation_predicts_a_sixth_in_short_spans():
    batch = {"tokens": np.tile(np.arange(10, 522), (50, 1)).astype(np.int32)}
    made = corruption.permutation(512, (), 0)(batch, keys(50))
    assert made["targets"].shape == (50, 85)  # XLNet's num_predict
    assert made["weights"].all()
    hidden = made["target_mapping"].sum(1) > 0
    assert abs(hidden.mean(0) - 85 / 512).max() < 0.35
    runs = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int))
    length = np.flatnonzero(runs.ravel() < 0) - np.flatnonzero(runs.ravel() > 0)
    assert 1.5 < length.mean() < 3
    assert np.mean(length <= 5) > 0.95


def test_functional_tokens_stand_in_the_order_too():
    batch = {"tokens": np.tile(np.arange(10, 138), (50, 1)).astype(np.int32)}
    batch["tokens"][:, 15::16] = 3
    made = corruption.permutation(128, (3,), 0)(batch, keys(50))
    shown = [~mask[15::16][:, mapping.sum(0) > 0]
             for mask, mapping in zip(made["perm_mask"], made["target_mapping"])]  # fmt: skip
    assert np.mean(shown) == pytest.approx(0.5, abs=0.05)


KINDS = {
    "span_corruption": {"tokenizer": "bpe:300", "extra_ids": 20},
    "text_infilling": {"tokenizer": "bpe:300"},
    "permutation": {"tokenizer": "char"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["windows", "padded"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_batches_are_pure_and_the_same_in_parts(load, folder, kind, layout, split):
    options = {"layout": layout, "batch_size": 6, **KINDS[kind]}
    if layout == "padded":
        options["snippet_lines"] = 3
    dataset = load(f"{folder}/*/*.txt", **options)
    config = Config(**options, seq_len=32)
    made = dataset.transformed(corruption.make(kind, dataset.tokenizer, config))
    half = getattr(made, split)
    assert getattr(dataset, split).transform is None
    for step in {0, half.num_batches - 1}:
        whole = half.batch(step, 1)
        assert_same(whole, half.batch(step, 1))
        parts = [half.batch(step, 1, slice(i, i + 2)) for i in (0, 2, 4)]
        assert_same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
        np.testing.assert_array_equal(whole["rows"], range(6))
        shapes = {name: array.shape for name, array in whole.items()}
        assert shapes == {name: array.shape for name, array in half.batch(0, 1).items()}
        before = getattr(dataset, split).batch(step, 1)
        empty = before.get("segment_ids", np.ones((6, 1))).max(1) == 0
        assert (whole["weights"].max(1) == 0)[empty].all()
        assert whole["weights"].max(1)[~empty].all()
    differ = [half.batch(0, seed)["targets"].tobytes() for seed in (1, 2)]
    assert (differ[0] == differ[1]) == (split == "validation")
    if split == "train":
        assert (half.batch(0, 1)["targets"] != half.batch(1, 1)["targets"]).any()


def test_the_same_rows_are_corrupted_anew_in_each_epoch(load, folder):
    options = {"layout": "padded", "seq_len": 80, **KINDS["span_corruption"]}
    dataset = load(f"{folder}/*/*.txt", **options)
    config = Config(**options)
    transform = corruption.make("span_corruption", dataset.tokenizer, config)
    split = dataset.transformed(transform).train
    seen = [split.batch(step, 0)["targets"] for step in range(2 * split.num_batches)]
    found = {row.tobytes() for batch in seen for row in batch}
    assert len(found) > 1.5 * split.num_rows


def test_texts_come_back_through_a_published_frame(load, tmp_path, text_file):
    """A padded row's special tokens stay at its ends, and are written once."""
    dataset = load(text_file, layout="padded", snippet_lines=1, split="tail", tokenizer="bpe:300",
                   extra_ids=10)  # fmt: skip
    config = Config(layout="padded", seq_len=32, extra_ids=10)
    transform = corruption.make(
        "text_infilling", dataset.tokenizer, config, rate=0.0, permute=False
    )
    plain, made = dataset.validation.batch(0), dataset.transformed(transform).validation.batch(0)
    for row in range(4):
        text = dataset.tokenizer.decode(plain["tokens"][row])
        for name in ("source", "targets"):
            assert dataset.tokenizer.decode(made[name][row]) == text
            n = (made[name][row] == dataset.info.eos_id).sum()
            assert n == 1  # ours: … <eos>
            assert dataset.info.cls_id not in made[name][row]


BAD = [
    ({"kind": "spans"}, "did you mean|is not one of"),
    ({"layout": "packed"}, "reads 'windows', or 'padded'"),
    ({"layout": "padded", "pad_left": True}, "reads 'windows', or 'padded'"),
    ({"extra_ids": 0}, "needs 20 sentinels, .* has 0; set --config.data.extra_ids=100"),
    ({"kind": "text_infilling", "tokenizer": "char"}, "needs a token to begin"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_is_told_in_one_line(change, message):
    options = {"kind": "span_corruption", "seq_len": 400, "extra_ids": 100, **change}
    kind, tokenizer = options.pop("kind"), tokenizers.ByteTokenizer()
    if options.get("tokenizer") == "char":
        tokenizer = tokenizers.CharTokenizer("ab")
    config = Config(**options)
    with pytest.raises(UserError, match=message) as error:
        corruption.make(kind, tokenizer.with_sentinels(options["extra_ids"]), config)
    assert "\n" not in str(error.value)


def test_nothing_is_drawn_at_import():
    code = (
        "import numpy as np; before = np.random.get_state()[1].tolist()\n"
        "import random; state = random.getstate()\n"
        "import sys; from jaxformer.data import corruption\n"
        "assert np.random.get_state()[1].tolist() == before and random.getstate() == state\n"
        "assert not {'jax', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ends_of_sentences():
    tokenizer = tokenizers.ByteTokenizer()
    assert tokenizer.ends_of_sentences() == tuple(sorted(b".!?\n"))
    assert prose(0, 20).count("\n") == 2
