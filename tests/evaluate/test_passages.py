"""Passages are cut, found and put into a prompt as told; an encoder of random weights is enough."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteTokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate import embed, passages, stored
from jaxformer.models import encoder
from tests.interop.conftest import random_params

WORDS = [f"w{i}" for i in range(50)]
STORY = "".join(word + ("\n" if i % 7 == 6 else " ") for i, word in enumerate(WORDS))


@pytest.fixture(scope="module")
def reader():
    tokenizer = ByteTokenizer()
    config = encoder.Config(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=16, num_heads=2, max_length=64
    )
    model = encoder.make(config)
    return model, random_params(model), tokenizer


@pytest.fixture
def folder(tmp_path):
    at = tmp_path / "texts"
    (at / "more").mkdir(parents=True)
    (at / "story.txt").write_text(STORY)
    (at / "more" / "ä b.md").write_text("\ufeffone two\n\n  three größer\n", encoding="utf-8")
    (at / "empty.txt").write_text(" \n")
    (at / "image.png").write_bytes(b"\x89PNG\x00\xff\xfe")
    (at / "latin.txt").write_bytes("größe".encode("latin-1"))
    (at / ".hidden").write_text("not to be found")
    (at / ".git").mkdir()
    (at / ".git" / "config").write_text("not to be found")
    (at / "gone").symlink_to(at / "nowhere")
    return at


@pytest.mark.parametrize(("words", "overlap"), [(10, 0), (10, 3), (7, 6), (50, 10), (99, 0)])
def test_every_word_is_in_a_passage_and_as_many_are_shared(words, overlap):
    found = list(passages.cut(STORY, words, overlap))
    split = [text.split() for text, _ in found]
    joined = split[0] + [word for part in split[1:] for word in part[overlap:]]
    assert joined == WORDS
    for part, following in itertools.pairwise(split):
        assert len(part) == words and len(following) > overlap
        assert part[len(part) - overlap :] == following[:overlap]
    lines = STORY.splitlines()
    for text, line in found:
        assert text in STORY and lines[line - 1].split()[-1] in STORY
        assert text.split()[0] in lines[line - 1].split()


def test_nothing_is_cut_from_nothing():
    assert list(passages.cut(" \n\t", 5, 2)) == []
    assert list(passages.cut("\n\n a", 5, 2)) == [("a", 3)]


def test_an_index_holds_every_passage(reader, folder, tmp_path):
    made = passages.build(tmp_path / "index", *reader, folder, words=8, overlap=2)
    assert made == (9, 3, 3)  # the empty file is text; the others are not, or cannot be read
    index = passages.open_index(tmp_path / "index")
    assert index.files == ["empty.txt", "story.txt", "more/ä b.md"]
    want = [(text, "story.txt", line) for text, line in passages.cut(STORY, 8, 2)]
    want.append(("one two\n\n  three größer", "more/ä b.md", 1))
    found = [passages._found(index, number, 0.0)[:3] for number in range(9)]
    assert found == want
    vectors_ND = embed.embed_texts(*reader, [text for text, *_ in want], normalise=True)
    np.testing.assert_allclose(index.vectors_ND, vectors_ND, rtol=1e-6)
    assert isinstance(index.vectors_ND, np.memmap)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_question_finds_what_is_most_alike(reader, folder, tmp_path, pooling):
    path = tmp_path / "index"
    passages.build(path, *reader, folder, words=8, overlap=2, pooling=pooling, max_length=32)
    index = passages.open_index(path)
    questions = ["w20 w21?", "one two\n\n  three größer"]
    found = passages.retrieve(path, index, *reader, questions, top=4)
    asked_QD = embed.embed_texts(*reader, questions, pooling=pooling, max_length=32)
    asked_QD = asked_QD.astype(np.float64)
    asked_QD /= np.linalg.norm(asked_QD, axis=1, keepdims=True)
    cosine_QN = asked_QD @ index.vectors_ND.T.astype(np.float64)
    for row, cosine_N in zip(found, cosine_QN):
        order = np.argsort(-cosine_N)[:4]
        assert [passage[:3] for passage in row] == [
            passages._found(index, number, 0.0)[:3] for number in order
        ]
        np.testing.assert_allclose([passage.score for passage in row], cosine_N[order], atol=1e-5)
    assert found[1][0].file == "more/ä b.md" and found[1][0].score == pytest.approx(1, abs=1e-5)
    every = passages.retrieve(path, index, *reader, ["a"], top=99)
    assert len(every[0]) == 9


def some(*texts: str) -> list[passages.Found]:
    return [passages.Found(text, "f", 1, 0.5) for text in texts]


@pytest.mark.parametrize(
    ("most", "prompt", "count"),
    [
        (99, "a b c\n\nd e\n\nwhy?", 2),
        (9, "a b c\n\nd e\n\nwhy?", 2),  # words, counted as tokens are
        (5, "a b c\n\nwhy?", 1),
        (3, "a b\n\nwhy?", 1),
        (2, "a\n\nwhy?", 1),
        (1, "why?", 0),
    ],
)
def test_a_prompt_is_cut_to_fit(most, prompt, count):
    filled, used = passages.fill(
        passages.TEMPLATE, "why?", some("a b c", "d e"), lambda text: len(text.split()) <= most
    )
    assert filled == prompt and len(used) == count


def test_what_stands_in_a_text_is_no_template():
    filled, _ = passages.fill(
        "Q: {question} A: {passages}.", "{passages}", some("{question} {x}"), lambda text: True
    )
    assert filled == "Q: {passages} A: {question} {x}."
    assert passages.fill(passages.TEMPLATE, "q", [], lambda text: True) == ("q", [])


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_bad_input(reader, folder, tmp_path):
    path = tmp_path / "index"
    (tmp_path / "bare").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x").write_bytes(b"\0\1")
    refused(lambda: passages.build(path, *reader, tmp_path / "bare"), "has no text", "0 of its")
    refused(lambda: passages.build(path, *reader, tmp_path / "binary"), "has no text", "1 of its")
    refused(lambda: passages.build(path, *reader, tmp_path / "gone"), "is no folder")
    refused(lambda: passages.build(path, *reader, folder, words=5, overlap=5), "--overlap=5")
    assert not path.exists() and not list(tmp_path.glob("*unfinished*"))
    passages.build(path, *reader, folder)
    refused(lambda: passages.build(path, *reader, folder), "is there already")
    model, _, tokenizer = reader
    other = model, random_params(model, seed=1), tokenizer
    index = passages.open_index(path)
    refused(lambda: passages.retrieve(path, index, *other, ["a"]), "another model", "index")
    for template in ("{passages}", "{question}", "{passages}{question}{question}"):
        refused(lambda template=template: passages.check_template(template), "--template")
    refused(
        lambda: stored.open_folder(path, "datastore", "datastore"),
        "holds passages",
        "datastore of format",
    )
    text = path / "text.npy"
    text.write_bytes(text.read_bytes()[:-1])
    refused(lambda: passages.open_index(path), "damaged", "jaxformer index")
