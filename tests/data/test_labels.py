"""Numbers and tags as labels, and published files read by the config's keys alone."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer import data
from jaxformer.errors import UserError
from tests.data.conftest import every_row, prose, words_tokenizer, write_rows

SENTENCES = [
    (["the", "old", "ship", "sings"], ["O", "B-ADJ", "B-SHIP", "O"]),
    (["wind", "runs", "to", "the", "sea"], ["B-AIR", "O", "O", "O", "B-SEA"]),
    (["a", "blue", "house"], ["O", "B-ADJ", "B-HOUSE"]),
] * 8


def test_numbers(load, tmp_path):
    rows = [{"a": prose(i, 4), "b": prose(i, 3), "score": i / 7 - 1} for i in range(60)]
    dataset = load(
        write_rows(tmp_path / "sts.jsonl", rows), layout="padded", labels="value",
        text_field="a", text_pair_field="b", label_field="score", split="tail", batch_size=5,
        seq_len=64,
    )  # fmt: skip
    assert dataset.info.num_classes == 0
    assert dataset.info.class_names == ()
    batch = every_row(dataset.validation)
    assert batch["labels"].dtype == np.float32
    np.testing.assert_allclose(batch["labels"], [i / 7 - 1 for i in range(54, 60)], rtol=1e-6)
    last = dataset.validation.batch(1)
    np.testing.assert_allclose(last["labels"], [59 / 7 - 1, 0, 0, 0, 0], rtol=1e-6)
    assert last["labels"].dtype == dataset.train.batch(0)["labels"].dtype == np.float32


@pytest.mark.parametrize("value", ["good", "nan", "inf", ""])
def test_a_label_that_is_no_number(load, tmp_path, value):
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": value}] * 20
    file = write_rows(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError, match=r"x.jsonl:2: field 'label'.*not a number") as error:
        load(file, layout="padded", labels="value")
    assert "\n" not in str(error.value)


def tagged_file(tmp_path, kind):
    if kind == "jsonl":
        rows = [{"tokens": words, "tags": tags} for words, tags in SENTENCES]
        return {"source": write_rows(tmp_path / "x.jsonl", rows)}
    if kind == "fields":
        rows = [{"words": words, "ner": tags, "tags": []} for words, tags in SENTENCES]
        file = write_rows(tmp_path / "y.jsonl", rows)
        return {"source": file, "text_field": "words", "label_field": "ner"}
    lines = ["-DOCSTART- -X- O"]
    for words, tags in SENTENCES:
        lines += ["", *(f"{word} X I-NP {tag}" for word, tag in zip(words, tags))]
    (tmp_path / "x.conll").write_text("\n".join(lines))
    if kind == "columns":
        names = ("text", "pos", "tags", "other")
        swapped = [" ".join(x.split()[i] for i in (0, 1, 3, 2)) if x.count(" ") == 3 else x
                   for x in lines]  # fmt: skip
        (tmp_path / "x.conll").write_text("\r\n".join(swapped))
        return {"source": tmp_path / "x.conll", "fields": names}
    return {"source": tmp_path / "x.conll"}


@pytest.mark.parametrize("kind", ["jsonl", "fields", "conll", "columns"])
@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300", "words"])
def test_tags_stand_at_the_first_token_of_each_word(load, tmp_path, kind, tokenizer):
    if tokenizer == "words":
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        tokenizer = str(words_tokenizer(tmp_path / "t.json", specials))
    dataset = load(
        layout="padded", labels="tags", tokenizer=tokenizer, split="tail", batch_size=2,
        **tagged_file(tmp_path, kind),
    )  # fmt: skip
    names = ("B-ADJ", "B-AIR", "B-HOUSE", "B-SEA", "B-SHIP", "O")
    assert (dataset.info.class_names, dataset.info.num_classes) == (names, 6)
    batch = every_row(dataset.train)
    assert "labels" not in batch or "labels" not in dataset.train.batch(0)
    documents = dataset.documents("train")
    assert len(documents) == 22
    for row, document in enumerate(documents):
        assert (document.words, document.tags) == tuple(map(tuple, SENTENCES[row]))
        tags, tokens = batch["tags"][row], batch["tokens"][row]
        where = np.flatnonzero(tags >= 0)
        assert [names[tag] for tag in tags[where]] == list(document.tags)
        ends = [*where[1:], batch["segment_ids"][row].sum() - 1]
        words = [
            dataset.tokenizer.decode(tokens[a:b]).strip() for a, b in zip(where, ends, strict=True)
        ]
        assert words == list(document.words)
        assert batch["segment_ids"][row][where].all()
    assert batch["tags"].dtype == np.int32
    last = dataset.validation.batch(dataset.validation.num_batches - 1)
    assert (last["tags"][last["segment_ids"].max(1) == 0] == -1).all()


def test_long_sentences_keep_all_their_tags(load, tmp_path):
    rows = [{"tokens": prose(i, 40).split(), "tags": [str(j % 12) for j in range(40)]}
            for i in range(20)]  # fmt: skip
    file = write_rows(tmp_path / "x.jsonl", rows)
    dataset = load(file, layout="padded", labels="tags", seq_len=16, split="tail")
    assert dataset.info.class_names == tuple(map(str, range(12)))
    batch = every_row(dataset.train)
    found = batch["tags"][batch["tags"] >= 0]
    np.testing.assert_array_equal(found, np.tile(np.arange(40) % 12, 18))
    assert dataset.train.layout.document_R.max() == 17


@pytest.mark.parametrize("labels", ["field", "tags"])
def test_classes_in_a_given_order(load, tmp_path, labels):
    """One that no document has keeps its number; what has no label stays without one."""
    names = ("c", "unseen", "a", "b")
    if labels == "tags":
        rows = [{"tokens": ["the", "ship"], "tags": ["abc"[i % 3], "c"]} for i in range(30)]
    else:
        rows = [{"text": prose(i, 4), "label": "abc"[i % 3]} for i in range(30)]
    file = write_rows(tmp_path / "x.jsonl", rows)
    keys = {"layout": "padded", "labels": labels, "split": "tail", "batch_size": 3}
    by_name = load(file, **keys)
    ordered = load(file, **keys, class_names=names)
    assert by_name.info.class_names == ("a", "b", "c")
    assert (ordered.info.class_names, ordered.info.num_classes) == (names, 4)
    key = "tags" if labels == "tags" else "labels"
    for split in ("train", "validation"):
        plain = every_row(getattr(by_name, split))[key]
        moved = every_row(getattr(ordered, split))[key]
        np.testing.assert_array_equal(moved, np.array([2, 3, 0, -1])[plain])
        assert plain.dtype == moved.dtype
    assert ordered.info.majority == by_name.info.majority
    for wrong, told in {("a", "b"): "lacks 'c'", ("a", "b", "c", "a"): "has a name twice"}.items():
        with pytest.raises(UserError, match=told):
            load(file, **keys, class_names=wrong)
    with pytest.raises(UserError, match="data.class_names=a,b orders classes"):
        load(file, class_names=("a", "b"))


BAD = [
    ('{"tokens": ["a"], "tags": ["x", "y"]}', {}, "1 words, but 2 tags"),
    ('{"tokens": "a b", "tags": ["x", "y"]}', {}, "list of words"),
    ('{"words": ["a"], "tags": ["x"]}', {}, "no field 'tokens'"),
    ('{"tokens": ["a"], "tags": ["x"]}', {"text_pair_field": "b"}, "text_pair_field"),
    ("a X\nb\n", {"name": "x.conll"}, "x.conll:2 has 1 columns"),
    ("a X\n", {"name": "x.conll", "fields": ("word", "tag")}, "data.text_field='text' is not"),
]


@pytest.mark.parametrize(("content", "config", "message"), BAD)
def test_mistakes_in_tags_are_told_in_one_line(load, tmp_path, content, config, message):
    config = dict(config)
    file = tmp_path / config.pop("name", "x.jsonl")
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(file, layout="padded", labels="tags", **config)
    assert "\n" not in str(error.value)


def test_glue_files_need_no_more_than_the_config(load, shared_data):
    """SST-2, CoLA and MRPC as they are published: delimiters, no header line, quotes."""
    folder = shared_data / "classification"
    files = {
        "sst2": dict(source=folder / "sst2.train.txt", fields=("label", "text"), delimiter=" ",
                     validation_source=str(folder / "sst2.dev.txt")),
        "cola": dict(source=folder / "cola.in_domain_train.tsv",
                     fields=("source", "label", "mark", "text"),
                     validation_source=str(folder / "cola.in_domain_dev.tsv")),
        "mrpc": dict(source=folder / "msr_paraphrase_train.txt", text_field="#1 String",
                     text_pair_field="#2 String", label_field="Quality", delimiter="\t",
                     validation_source=str(folder / "msr_paraphrase_test.txt")),
    }  # fmt: skip
    rows = {"sst2": (6920, 872), "cola": (8551, 527), "mrpc": (4076, 1725)}
    for name, config in files.items():
        dataset = load(layout="padded", labels="field", seq_len=64, **config)
        assert (dataset.train.num_rows, dataset.validation.num_rows) == rows[name]
        assert dataset.info.class_names == ("0", "1")
        batch = dataset.train.batch(0, 0)
        assert set(batch["labels"]) <= {0, 1}
        texts = dataset.documents("validation")
        assert len(texts) == rows[name][1]
        labels = every_row(dataset.validation)["labels"]
        assert [str(label) for label in labels] == [text.label for text in texts]
    quoted = [d.text for d in dataset.documents("train") if d.text.startswith("Amrozi")]
    assert 'whom he called "the witness"' in quoted[0]


def test_regression_config_is_checked():
    with pytest.raises(UserError, match="labels='value' needs"):
        data.Config(labels="value")
    with pytest.raises(UserError, match="did you mean 'value'"):
        data.Config(labels="values", layout="padded")
