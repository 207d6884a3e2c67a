"""Sources and targets: every token in its place, alone in a row or beside others."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.layouts import Ends, Seq2Seq
from jaxformer.data.packing import pack_pairs
from jaxformer.errors import UserError
from tests.data.conftest import WORDS, every_row, prose, words_tokenizer, write_rows
from tests.data.test_layouts import corpus, documents

ENDS = Ends((), (2,), (), (2,), 3)  # T5: … </s>, the decoder begins with padding
BART = Ends((4,), (2,), (4,), (2,), 2)  # <s> … </s>, the decoder begins with </s>
pairs = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(pairs=pairs, packed=st.booleans(), ends=st.sampled_from([ENDS, BART]))
def test_rows_are_the_pairs(pairs, packed, ends):
    pairs = [*pairs, (3, 3)]
    data = corpus([a + b for a, b in pairs], [a for a, _ in pairs])
    layout = Seq2Seq(data, 14, 12, ends, 0, packed)
    rows = np.arange(layout.num_rows)
    batch = layout.gather(rows, np.zeros_like(rows))
    got = []
    for row in rows:
        source_ids, ids = batch["source_segment_ids"][row], batch["segment_ids"][row]
        count = ids.max()
        assert set(source_ids) - {0} == set(ids) - {0} == set(range(1, count + 1))
        assert packed or count == 1
        for number in range(1, count + 1):
            inside = ids == number
            assert np.ptp(np.flatnonzero(inside)) == inside.sum() - 1
            np.testing.assert_array_equal(batch["positions"][row][inside], range(inside.sum()))
            assert (batch["weights"][row][inside] == 1).all()
            source = batch["source"][row][source_ids == number].tolist()
            tokens, targets = (batch[n][row][inside].tolist() for n in ("tokens", "targets"))
            assert tokens == [ends.start, *targets[:-1]]
            got.append((source, targets))
        for name, where in (("source", source_ids), ("tokens", ids), ("targets", ids)):
            assert (batch[name][row][where == 0] == 0).all()
        assert (batch["weights"][row][ids == 0] == 0).all()
    expected, cut = [], 0
    for text, (a, b) in zip(documents(data), pairs):
        room = 14 - ends.source_length, 12 - ends.target_length
        source = [*ends.source_prefix, *text[:a][: room[0]], *ends.source_suffix]
        target = [*ends.target_prefix, *text[a:][: room[1]], *ends.target_suffix]
        expected.append((source, target))
        cut += a > room[0] or b > room[1]
    assert sorted(got) == sorted(expected)
    assert packed or got == expected
    assert layout.truncated == cut


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=300))
def test_packing_overflows_neither_side(sizes):
    source, target = np.array(sizes).T
    row = pack_pairs(source, target, 40, 300)  # targets are told apart to three tokens
    assert np.bincount(row, source).max() <= 40
    assert np.bincount(row, target).max() <= 300
    first = [np.flatnonzero(row == r)[0] for r in range(row.max() + 1)]
    assert first == sorted(first)
    # No two rows could be joined, but for what rounding hides.
    fill = [np.bincount(row, x) / n for x, n in ((source, 40), (target, 297))]
    assert (np.maximum(*fill) <= 0.45).sum() <= 1


def test_packing_fills_rows_of_natural_lengths():
    random = np.random.default_rng(0)
    source = random.lognormal(2.6, 0.35, 20000).astype(int).clip(3, 60)
    target = (source * random.normal(1.02, 0.2, len(source))).astype(int).clip(3, 60)
    row = pack_pairs(source, target, 64, 64)
    rows = row.max() + 1
    assert max(source.sum(), target.sum()) / (rows * 64) > 0.95


@pytest.fixture
def lines(tmp_path):
    """en.gz and de.txt of 200 lines, and two more of 18."""
    for name, count in (("train", 200), ("val", 18)):
        english = [prose(i, 3 + i % 7).replace("\n", " ") for i in range(count)]
        german = [f"{i} {' '.join(reversed(text.split()))}" for i, text in enumerate(english)]
        with gzip.open(tmp_path / f"{name}.en.gz", "wt") as stream:
            stream.write("\n".join(english) + "\n")
        (tmp_path / f"{name}.de").write_text("\r\n".join(german))
    return tmp_path


def parallel(folder, **more):
    return {
        "source": folder / "train.en.gz",
        "target_source": str(folder / "train.de"),
        "validation_source": str(folder / "val.en.gz"),
        "validation_target_source": str(folder / "val.de"),
        "layout": "seq2seq",
        "seq_len": 48,
        "source_len": 40,
        "tokenizer": "bpe:300",
        **more,
    }


@pytest.mark.parametrize("layout", ["seq2seq", "seq2seq_packed"])
def test_parallel_files(load, lines, layout):
    dataset = load(**parallel(lines, layout=layout))
    info, decode = dataset.info, dataset.tokenizer.decode
    assert (info.train_documents, info.validation_documents) == (200, 18)
    assert (info.start_id, info.end_id) == (info.eos_id, info.eos_id)
    batch, texts = every_row(dataset.validation), dataset.documents("validation")
    german = (lines / "val.de").read_text().split("\n")
    assert [text.pair for text in texts] == german
    for row, text in enumerate(texts):  # a row is a document, in both layouts
        assert decode(batch["source"][row]) == text.text
        assert decode(batch["targets"][row]) == text.pair == german[row]
        length = int(batch["weights"][row].sum())
        assert batch["tokens"][row][0] == info.start_id
        assert batch["targets"][row][length - 1] == info.end_id
    train = dataset.train
    assert (train.num_rows < 100) == (layout == "seq2seq_packed")
    first = train.batch(0, 0)
    assert first["source"].shape == (4, 40)
    assert first["targets"].shape == (4, 48)
    assert all(first[name].dtype == np.int32 for name in first if name != "weights")
    total = every_row(train)["weights"].sum()
    assert total == sum(len(ids) + 1 for ids in dataset.tokenizer.encode_batch(
        [text.pair for text in dataset.documents("train")]))  # fmt: skip
    targets = [text.pair for text in texts]
    scored = sum(len(ids) + 1 for ids in dataset.tokenizer.encode_batch(targets))
    assert info.bytes_per_token == pytest.approx(len("".join(targets)) / scored)
    last = dataset.validation.batch(dataset.validation.num_batches - 1)
    for name in ("source_segment_ids", "segment_ids", "weights"):
        np.testing.assert_array_equal(last[name].any(1), [True, True, False, False])


def test_a_hash_holds_out_the_same_pairs(load, lines):
    options = parallel(lines)
    del options["validation_source"], options["validation_target_source"]
    dataset = load(**options)
    texts = [{d.text for d in dataset.documents(split)} for split in ("train", "validation")]
    assert all(texts)
    assert 5 < dataset.validation.num_rows < 50
    assert not {d.pair for d in dataset.documents("train")} & {
        d.pair for d in dataset.documents("validation")
    }


def test_what_is_too_long_is_told(load, lines):
    told = []
    load(**parallel(lines, seq_len=9), say=told.append)
    assert any("train pairs lose their ends" in line and "seq_len=9" in line for line in told)


def test_fields_prefix_and_a_nested_field(load, tmp_path):
    rows = [{"translation": {"en": f"the sea {i}", "de": f"See {i}"}} for i in range(60)]
    options = {
        "layout": "seq2seq",
        "text_field": "translation.en",
        "target_field": "translation.de",
    }
    source = write_rows(tmp_path / "x.jsonl", rows)
    dataset = load(source, source_prefix="translate: ", seq_len=40, split="tail", **options)
    batch = every_row(dataset.validation)
    assert dataset.tokenizer.decode(batch["source"][0]) == "translate: the sea 54"
    assert dataset.tokenizer.decode(batch["targets"][0]) == "See 54"
    with pytest.raises(
        UserError, match=r"no field 'translation.dd'.*did you mean 'de'|fields: en, de"
    ):
        load(source, **{**options, "target_field": "translation.dd"})


def test_published_tokenizers_bring_their_ends(load, lines, tmp_path):
    """T5 begins with padding and ends with </s>; BART begins with </s> and keeps its <s>."""
    words = [*WORDS, *map(str, range(300))]
    t5 = words_tokenizer(
        tmp_path / "t5.json", ["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>", words
    )
    dataset = load(**parallel(lines, tokenizer=str(t5), start_id=0))
    batch, document = every_row(dataset.validation), dataset.documents("validation")[3]
    target = [dataset.tokenizer.encode(word)[0] for word in document.pair.split()]
    n = len(target) + 1
    assert batch["tokens"][3][:n].tolist() == [0, *target]
    assert batch["targets"][3][:n].tolist() == [*target, 1]
    assert batch["source"][3][: batch["source_segment_ids"][3].sum()].tolist()[-1] == 1
    assert (dataset.info.start_id, dataset.info.end_id) == (0, 1)
    bart = words_tokenizer(
        tmp_path / "bart.json", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", words,
    )  # fmt: skip
    for start_id, begin in ((2, [2, 0]), (-1, [0])):  # -1: <s>, which is not written twice
        dataset = load(**parallel(lines, tokenizer=str(bart), start_id=start_id))
        batch = every_row(dataset.validation)
        target = [dataset.tokenizer.encode(word)[0] for word in document.pair.split()]
        tokens = [*begin, *target]
        assert batch["tokens"][3][: len(tokens)].tolist() == tokens
        assert batch["targets"][3][: len(tokens)].tolist() == [*tokens[1:], 2]
        assert batch["source"][3][0] == 0


BAD = [
    ({"target_source": "no.de"}, "data.target_source='no.de': no such file"),
    ({"target_source": ""}, "data.target_field .* data.target_source|belong together"),
    ({"validation_target_source": ""}, "belong together"),
    ({"target_field": "de"}, "one of data.target_field"),
    ({"layout": "padded"}, "target_source needs data.layout='seq2seq'"),
    ({"tokenizer": "{gpt}"}, "one to end a target with"),
    ({"start_id": 9999}, "data.start_id=9999"),
    ({"source_len": 1}, "leave no room for text"),
    ({"target_source": "{short}"}, r"train.en.gz has 200 lines, but .*short.de has 2"),
    ({"source": "{many}"}, r"is 2 files, but its targets .* are 1"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_mistakes_are_told_in_one_line(load, lines, tmp_path, config, message):
    (tmp_path / "short.de").write_text("a\nb\n")
    paths = {"short": tmp_path / "short.de", "many": tmp_path / "*.en.gz"}
    paths["gpt"] = words_tokenizer(tmp_path / "gpt.json", ["<unk>"])
    filled = {k: v.format(**paths) if isinstance(v, str) else v for k, v in config.items()}
    with pytest.raises(UserError, match=message) as error:
        load(**{**parallel(lines), **filled})
    assert "\n" not in str(error.value)


def test_multi30k_fills_its_rows(load, shared_data):
    folder = shared_data / "translation"
    dataset = load(
        folder / "multi30k.train.en.gz",
        target_source=str(folder / "multi30k.train.de.gz"),
        validation_source=str(folder / "multi30k.val.en.gz"),
        validation_target_source=str(folder / "multi30k.val.de.gz"),
        tokenizer="bpe:1000", layout="seq2seq_packed", seq_len=96, source_len=96,
        max_documents=4000,
    )  # fmt: skip
    assert dataset.info.train_documents == 4000
    assert dataset.validation.num_rows == 1014
    batch = every_row(dataset.train)
    assert (batch["segment_ids"] > 0).mean() > 0.93
    assert (batch["source_segment_ids"] > 0).mean() > 0.88
