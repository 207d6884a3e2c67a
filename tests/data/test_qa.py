"""Questions and windows of their contexts: answers are where they should be, and come back."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from jaxformer.errors import UserError
from tests.data.conftest import prose, words_tokenizer, write_rows

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def article(number, impossible=False):
    """An article of two contexts with three questions each."""
    paragraphs = []
    for part in range(2):
        context = f"  Ort{number}é{part}, " + prose(10 * number + part, 30)
        questions = []
        for i in range(3):
            words = context.split()
            text = " ".join(words[4 + 5 * i : 6 + 6 * i])
            begin = context.find(text.split()[0], len(" ".join(words[: 4 + 5 * i])) - 3)
            text = context[begin : begin + len(text)]
            answers = [{"answer_start": begin, "text": text}]
            questions.append({
                "id": f"{number}-{part}-{i}", "question": f"where is {prose(i, 3)} {number}?",
                "answers": [] if impossible and i == 2 else answers,
                "is_impossible": impossible and i == 2,
            })  # fmt: skip
        paragraphs.append({"context": context, "qas": questions})
    return {"title": f"T{number}", "paragraphs": paragraphs}


@pytest.fixture
def squad(tmp_path):
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"version": "2", "data": [article(i, i % 2) for i in range(10)]}))
    return file


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300", "wordpiece:200"])
def test_windows_and_answers(load, squad, tokenizer):
    dataset = load(squad, layout="qa", seq_len=60, doc_stride=9, max_question=12,
                   tokenizer=tokenizer, validation_fraction=0.2)  # fmt: skip
    for name in ("train", "validation"):
        split = getattr(dataset, name)
        documents = dataset.documents(name)
        rows = np.arange(split.num_rows)
        batch = split.layout.gather(rows, np.zeros_like(rows))
        holders, covered = {}, {}
        for row in rows:
            feature = split.layout.features(row)
            document = documents[feature.document]
            spans = feature.spans_T2
            inside = np.flatnonzero(spans[:, 0] >= 0)
            context = document.pair
            if feature.first == 0:
                firsts = {}
            for number, span in enumerate(spans[inside], feature.first):  # windows agree
                assert firsts.setdefault(number, tuple(span)) == tuple(span)
            assert (np.diff(inside) == 1).all()
            # The tokens of the window are those of the characters that the spans say.
            text = dataset.tokenizer.decode(batch["tokens"][row][inside]).strip()
            begin, stop = spans[inside[0], 0], spans[inside[-1], 1]
            if tokenizer != "wordpiece:200":  # unknown words are [UNK] there
                assert text == context[begin:stop].strip()
            for a, b in spans[inside] if tokenizer not in ("byte", "char") else ():
                assert context[a:b] == context[a:b].strip()
            covered.setdefault(feature.document, []).append((begin, stop))
            types = batch["token_types"][row]
            assert (types[inside] == 1).all()
            assert not types[: inside[0]].any()
            # What Longformer makes global ends where the separator before the context stands.
            np.testing.assert_array_equal(
                np.flatnonzero(batch["global_tokens"][row]), range(inside[0] - 1)
            )
            start, end = batch["start"][row], batch["end"][row]
            assert (start == 0) == (end == 0)
            if start:
                answer = context[spans[start, 0] : spans[end, 1]]
                wanted = document.answers[0]
                assert spans[start, 0] <= wanted[0]
                assert wanted[1] in answer
                if tokenizer in ("byte", "char"):
                    assert answer == wanted[1]
                holders.setdefault(feature.document, []).append(row)
        for number, document in enumerate(documents):
            parts = covered[number]
            text = document.pair
            assert not text[: parts[0][0]].strip()
            assert not text[parts[-1][1] :].strip()
            assert all(b[0] <= len(text[: a[1]]) + 1 for a, b in itertools.pairwise(parts))
            assert (number in holders) == bool(document.answers)
        np.testing.assert_array_equal(np.unique(split.layout.document_R), range(len(documents)))


def test_articles_stay_together(load, squad):
    dataset = load(squad, layout="qa", seq_len=80, max_question=20, validation_fraction=0.2)
    train, validation = (dataset.documents(name) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (48, 12)
    assert not {d.pair for d in train} & {d.pair for d in validation}
    assert len({d.key for d in validation}) == 2
    assert dataset.info.train_documents == 48
    batch = dataset.validation.batch(dataset.validation.num_batches - 1)
    assert batch["start"].dtype == batch["end"].dtype == np.int32


def test_rows_of_a_data_set_hold_the_same(load, squad, tmp_path):
    rows = []
    for entry in json.loads(squad.read_text())["data"]:
        for paragraph in entry["paragraphs"]:
            for q in paragraph["qas"]:
                starts = [a["answer_start"] for a in q["answers"]]
                rows.append({
                    "id": q["id"], "title": entry["title"], "context": paragraph["context"],
                    "question": q["question"],
                    "answers": {"answer_start": starts, "text": [a["text"] for a in q["answers"]]},
                })  # fmt: skip
    file = write_rows(tmp_path / "x.jsonl", rows)
    options = {"layout": "qa", "seq_len": 80, "max_question": 20}
    one, two = (load(source, **options) for source in (squad, file))
    assert one.info == two.info
    assert one.documents("train") == two.documents("train")


def test_long_questions_lose_their_end(load, squad):
    dataset = load(squad, layout="qa", seq_len=40, max_question=5)
    batch = dataset.train.batch(0)
    for row in batch["tokens"]:
        separators = np.flatnonzero(row == dataset.info.sep_id)
        assert separators[0] == 6
        assert len(separators) == 2


def test_roberta_like_frames(load, squad, tmp_path):
    tokenizer = words_tokenizer(
        tmp_path / "t.json", ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
    )  # fmt: skip
    batch = load(squad, layout="qa", seq_len=24, tokenizer=str(tokenizer)).train.batch(0)
    assert "token_types" not in batch
    for row, ids in zip(batch["tokens"], batch["segment_ids"]):
        ends = np.flatnonzero((row == 2) & (ids > 0))
        assert row[0] == 0
        assert ends[1] == ends[0] + 1
        assert ends[2] == ids.sum() - 1


def test_xquad(load, shared_data):
    dataset = load(
        shared_data / "qa" / "xquad.en.json", layout="qa", seq_len=384, max_question=100,
        validation_fraction=0.2, tokenizer="wordpiece:2000",
    )  # fmt: skip
    train, validation = (dataset.documents(name) for name in ("train", "validation"))
    assert len(train) + len(validation) == 1190
    assert 0.18 < len(validation) / 1190 <= 0.2
    assert not {d.pair for d in train} & {d.pair for d in validation}
    layout = dataset.validation.layout
    rows = np.arange(layout.num_rows)
    batch = layout.gather(rows, np.zeros_like(rows))
    found, exact = set(), 0
    for row in np.flatnonzero(batch["start"]):
        feature = layout.features(row)
        document = validation[feature.document]
        begin = feature.spans_T2[batch["start"][row], 0]
        end = feature.spans_T2[batch["end"][row], 1]
        assert document.answers[0][1] in document.pair[begin:end]
        exact += document.pair[begin:end] == document.answers[0][1]
        found.add(feature.document)
    assert len(found) == len(validation)
    assert exact > 0.97 * (batch["start"] > 0).sum()


def broken(change):
    content = {"data": [article(0), article(1)]}
    change(content["data"][0]["paragraphs"][0])
    return json.dumps(content)


BAD = [
    ("[]", "SQuAD's form"),
    ("{", "SQuAD's form"),
    (broken(lambda p: p.pop("context")), "SQuAD's form.*context"),
    (broken(lambda p: p["qas"][0]["answers"][0].update(answer_start=1)), "does not stand at char"),
    (broken(lambda p: p["qas"][0]["answers"][0].pop("text")), "lacks answer_start or text"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_mistakes_are_told_in_one_line(load, tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "x.json", layout="qa", seq_len=80)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_question": 64}, "leaves no room for a context"),
        ({"split": "tail"}, "holds out whole articles"),
        ({"labels": "field"}, "needs one document a row"),
        ({"doc_stride": 0}, "data.doc_stride must be 1 or more"),
    ],
)
def test_configs_that_do_not_fit(load, squad, config, message):
    with pytest.raises(UserError, match=message):
        load(squad, **{"layout": "qa", "seq_len": 24, **config})
