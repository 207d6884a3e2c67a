"""Special tokens around texts, as published tokenizers put them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxformer.data import tokenizer_training, tokenizers
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError
from tests.data.conftest import WORDS, every_row, prose, words_tokenizer, write_rows

FAMILIES = {  # specials, template of one text and of a pair, in the library's words
    "bert": (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    ),
    "roberta": (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
    ),
    "xlnet": (
        ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"],
        "$A:0 <sep>:0 <cls>:2",
        "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
    ),
    "t5": (["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>"),
}


def made(tmp_path, family):
    return words_tokenizer(tmp_path / f"{family}.json", *FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [False, True])
def test_rows_are_what_the_library_makes_of_pairs(load, tmp_path, family, left):
    """Ids, types and padding equal those of the library's own encoding."""
    library = pytest.importorskip("tokenizers")
    file = made(tmp_path, family)
    texts = [(prose(i, 3 + i % 5), prose(50 + i, 1 + i % 3)) for i in range(40)]
    rows = write_rows(tmp_path / "x.jsonl", [{"text": a, "b": b} for a, b in texts])
    reference = library.Tokenizer.from_file(str(file))
    pad = next(name for name in FAMILIES[family][0] if "pad" in name.lower())
    reference.enable_padding(
        direction="left" if left else "right", length=24, pad_token=pad,
        pad_id=reference.token_to_id(pad),
    )  # fmt: skip
    for pair in (False, True):
        dataset = load(
            rows, tokenizer=str(file), layout="padded", seq_len=24, split="tail", pad_left=left,
            text_pair_field="b" if pair else "",
        )  # fmt: skip
        batch = every_row(dataset.train)
        assert batch["tokens"].shape == (36, 24)
        for row, (a, b) in enumerate(texts[:36]):
            encoding = reference.encode(a, b if pair else None)
            assert batch["tokens"][row].tolist() == encoding.ids
            real = np.array(encoding.attention_mask)
            np.testing.assert_array_equal(batch["segment_ids"][row], real)
            types = batch.get("token_types", np.zeros((36, 24), int))[row]
            np.testing.assert_array_equal(types * real, np.array(encoding.type_ids) * real)
            n = real.sum()
            where = np.flatnonzero(real)
            np.testing.assert_array_equal(batch["positions"][row][where], range(n))
            np.testing.assert_array_equal(batch["targets"][row][where[:-1]], encoding.ids[
                where[1] : where[-1] + 1])  # fmt: skip
            assert batch["weights"][row].sum() == n - 1
            assert not batch["weights"][row][where[-1]]
        types = {"bert": pair, "xlnet": True}
        assert ("token_types" in batch) == types.get(family, False)


def test_templates_survive_the_cache_without_the_library(load, tmp_path, text_file, monkeypatch):
    file = made(tmp_path, "xlnet")
    options = {"tokenizer": str(file), "layout": "padded", "snippet_lines": 1, "split": "tail"}
    first = load(text_file, **options)
    monkeypatch.setattr(tokenizers.library, "read", None)
    again = load(text_file, **options)
    for pair in (False, True):
        assert again.tokenizer.template(pair) == first.tokenizer.template(pair)
    assert again.tokenizer.template(pair=True) == Template((), (4,), (4, 3), (), 0, (0,), 1, (1, 2))


def test_without_a_template_texts_stand_between_cls_and_sep(tmp_path):
    bare = tokenizers.load(words_tokenizer(tmp_path / "x.json", FAMILIES["bert"][0]))
    ours = tokenizer_training.train("wordpiece", 100, [prose(0, 100)])
    for tokenizer in (bare, ours, tokenizers.ByteTokenizer()):
        cls, sep = tokenizer.cls_id, tokenizer.sep_id
        assert tokenizer.templates is None
        assert tokenizer.template() == Template((cls,), (), (sep,), (0,), suffix_types=(0,))
        pair = tokenizer.template(pair=True)
        assert (pair.prefix, pair.middle, pair.suffix) == ((cls,), (sep,), (sep,))
        assert (pair.first_type, pair.middle_types, pair.second_type) == (0, (0,), 1)
        assert pair.typed and not tokenizer.template().typed
    nothing = tokenizers.CharTokenizer("abc")
    assert nothing.template(pair=True).length == nothing.template().length == 0


def test_gaps_between_ids_are_kept(tmp_path):
    """Files with tokens beyond a gap are published; the vocabulary ends with the highest id."""
    file = words_tokenizer(tmp_path / "x.json", ["<unk>", "</s>"])
    content = json.loads(file.read_text())
    content["model"]["vocab"]["late"] = 40
    file.write_text(json.dumps(content))
    tokenizer = tokenizers.load(file)
    assert tokenizer.vocab_size == 41
    assert tokenizer.encode("the late ship") == [2, 40, 2 + WORDS.index("ship")]
    assert tokenizer.decode([40]) == "late"


@pytest.mark.parametrize("kind", ["byte", "char", "bare char", "bpe", "wordpiece", "file"])
def test_sentinels_come_last_in_descending_order(tmp_path, kind):
    if kind in ("bpe", "wordpiece"):
        tokenizer = tokenizer_training.train(kind, 300, [prose(0, 200)])
    elif kind == "file":
        tokenizer = tokenizers.load(made(tmp_path, "t5"))
    else:
        chars = {"char": ("abcdefgh ", True), "bare char": ("abcdefgh ",)}
        tokenizer = (
            tokenizers.CharTokenizer(*chars[kind]) if kind in chars else tokenizers.ByteTokenizer()
        )
    assert tokenizer.sentinel_ids == ()
    size = tokenizer.vocab_size
    more = tokenizer.with_sentinels(10)
    assert more.vocab_size == size + 10
    assert more.sentinel_ids == tuple(range(size + 9, size - 1, -1))
    for text in ("abc", "a <extra_id_3>" if "char" not in kind else "a"):
        ids = more.encode(text)
        assert ids == tokenizer.encode(text)
        assert not set(ids) & set(more.sentinel_ids)
    assert more.decode([size + 9], specials=True) == "<extra_id_0>"
    assert more.with_sentinels(10) is more.with_sentinels(4) is more
    with pytest.raises(UserError, match="has 10 sentinels"):
        more.with_sentinels(11)
    more.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert (again.vocab_size, again.specials) == (more.vocab_size, more.specials)
    assert again.encode("abc") == tokenizer.encode("abc")
    assert again.template() == tokenizer.template()


def test_sentinels_of_a_config(load, text_file, tmp_path):
    assert load(text_file, tokenizer="bpe:300").tokenizer.sentinel_ids == ()
    dataset = load(text_file, tokenizer="bpe:300", extra_ids=5)
    assert len(dataset.tokenizer.sentinel_ids) == 5
    assert dataset.info.vocab_size == dataset.tokenizer.sentinel_ids[0] + 1
    dataset.tokenizer.save(tmp_path)
    again = load(text_file, tokenizer=str(tmp_path), extra_ids=5, say=lambda line: 1 / 0)
    assert again.info == dataset.info


def test_names_of_special_tokens_in_a_text_are_mere_text(tmp_path, shared_data):
    """In word and unigram vocabularies "</s>" is a token like others: a text may not end itself."""
    words = tokenizers.load(made(tmp_path, "t5"))
    unknown = [words.unk_id]
    assert words.encode("the </s> sea") == [3, *unknown * 4, 3 + WORDS.index("sea")]
    assert words.encode("<unk>") == unknown
    t5 = tokenizers.load(shared_data / "tokenizers" / "t5_tokenizer_base.model").with_sentinels(100)
    text = "a </s> b<pad>c <extra_id_7> d"
    for ids in (t5.encode(text), t5.encode_spans([text])[0][0].tolist()):
        assert not {0, 1, *t5.sentinel_ids} & set(ids)
    spans = t5.encode_spans([text])[0][1]
    assert len(spans) == len(t5.encode(text))
    assert t5.encode("a</s>b", specials=True).count(1) == 1
