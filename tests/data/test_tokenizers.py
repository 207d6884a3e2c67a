"""Text → ids → text, for every kind of tokenizer, and the files that are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data import tokenizer_training, tokenizers
from jaxformer.data.tokenizers import library
from jaxformer.errors import UserError
from tests.data.conftest import prose

TEXTS = [prose(seed, 300) + " Äther, naïve: 東京 🚀\n\n\tx = [CLS] <eos>" for seed in range(3)]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer_training.train("bpe", 400, TEXTS)


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizer_training.train("wordpiece", 300, TEXTS)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_bytes_and_characters_round_trip(text):
    for tokenizer in (
        tokenizers.ByteTokenizer(),
        tokenizers.CharTokenizer("".join(sorted(set(text)))),
        tokenizers.CharTokenizer("".join(sorted(set(text))), with_specials=True),
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.special_ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_bpe_round_trips_any_text(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert not set(ids) & set(bpe.special_ids)


def test_encode_batch_is_encode(bpe, wordpiece):
    for tokenizer in (bpe, wordpiece, tokenizers.ByteTokenizer()):
        batch = tokenizer.encode_batch([*TEXTS, ""])
        assert [ids.tolist() for ids in batch] == [tokenizer.encode(t) for t in [*TEXTS, ""]]
        assert all(ids.dtype == np.int32 for ids in batch)


def test_special_names_in_a_text_are_mere_text_unless_asked(bpe):
    for tokenizer in (bpe, tokenizers.ByteTokenizer()):
        text = "a [MASK] b<eos>"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = tokenizer.encode(text, specials=True)
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.mask_id in ids
        assert tokenizer.decode(ids) == "a  b"
        assert tokenizer.decode(ids, specials=True) == text


def test_wordpiece_splits_words_and_knows_what_it_does_not_know(wordpiece):
    ids = wordpiece.encode("the seahouse")
    assert wordpiece.decode(ids) == "the seahouse"
    assert wordpiece.encode("ж") == [wordpiece.unk_id]
    ours = (wordpiece.pad_id, wordpiece.cls_id, wordpiece.sep_id, wordpiece.mask_id)
    assert ours == (0, 2, 3, 4)


def test_pieces_of_a_long_text_are_encoded_as_the_whole(bpe, monkeypatch):
    whole = bpe.encode(TEXTS[0] * 3)
    monkeypatch.setattr(library, "PIECE", 40)
    assert bpe.encode(TEXTS[0] * 3) == whole


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_is_the_same_in_another_process(kind, request):
    """Hash maps in the library are seeded anew in each process."""
    code = (
        "import sys\n"
        "from jaxformer.data import tokenizer_training\n"
        "from tests.data.test_tokenizers import TEXTS\n"
        "size = int(sys.argv[2])\n"
        "sys.stdout.write(tokenizer_training.train(sys.argv[1], size, TEXTS).to_json())"
    )
    tokenizer = request.getfixturevalue(kind)
    size = {"bpe": 400, "wordpiece": 300}[kind]
    other = subprocess.run(
        [sys.executable, "-c", code, kind, str(size)], capture_output=True, text=True, check=True
    )
    assert json.loads(other.stdout) == json.loads(tokenizer.to_json())


def test_save_and_load(tmp_path, bpe, wordpiece):
    for tokenizer in (
        bpe,
        wordpiece,
        tokenizers.ByteTokenizer(),
        tokenizers.CharTokenizer("abc é"),
        tokenizers.CharTokenizer("abc é", with_specials=True),
    ):
        tokenizer.save(tmp_path)
        again = tokenizers.load(tmp_path)
        assert again.vocab_size == tokenizer.vocab_size
        assert again.specials == tokenizer.specials
        assert again.encode("abc") == tokenizer.encode("abc")
        assert tokenizers.load(tmp_path / "tokenizer.json").to_json() == tokenizer.to_json()


def test_a_character_that_is_unknown():
    tokenizer = tokenizers.CharTokenizer("abc")
    with pytest.raises(UserError, match=r"'ж' \(U\+0436\)"):
        tokenizer.encode("abcж")
    assert tokenizers.CharTokenizer("abc", with_specials=True).encode("aж") == [6, 1]


def test_an_id_outside_the_vocabulary():
    with pytest.raises(UserError, match="token id 262"):
        tokenizers.ByteTokenizer().decode([262])


def vocabulary(ids):
    return json.dumps({"model": {"type": "WordLevel", "vocab": ids, "unk_token": "a"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ('{"jaxformer": "char"}', "not a tokenizer.json"),
        (vocabulary({"a": 0, "b": 2**31}), "ids must begin at 0, and most"),
        (vocabulary({"a": 0, "b": 0}), "both have id 0"),
        (vocabulary({}), "ids must begin at 0"),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.load(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        tokenizers.load(tmp_path)


def test_gpt2_files_of_the_library(shared_data, tmp_path):
    """A published vocabulary, against the library's own use of it."""
    library = pytest.importorskip("tokenizers")
    folder = shared_data / "tokenizers"
    model = library.models.BPE.from_file(
        str(folder / "gpt2_bpe_encoder.json"), str(folder / "gpt2_bpe_vocab.bpe")
    )
    reference = library.Tokenizer(model)
    reference.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = library.decoders.ByteLevel()
    reference.add_special_tokens(["<|endoftext|>"])
    reference.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.vocab_size == 50257
    assert tokenizer.eos_id == tokenizer.bos_id == 50256
    assert (
        tokenizer.encode("Hello world, naïve\n\n  x")
        == reference.encode("Hello world, naïve\n\n  x").ids
    )
    assert tokenizer.encode("Hello world") == [15496, 995]
