"""Tokenizers of the files that came before tokenizer.json, against those who published them."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from jaxformer.data import tokenizers
from jaxformer.data.tokenizers import sentencepiece
from jaxformer.errors import UserError

TEXTS = [
    "The quick brown Fox doesn't jump — naïve Äpfel, 12,345.67!",
    "  two  blanks\tand\nlines ",
    "日本 x²",
]
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "quick", "fox", "Fox", "##x"),
    *("fo", "na", "##ive", "##ïve", "!", ",", "apfel", "Äpfel", "日", "x"),
]


@pytest.mark.parametrize("lower", [None, True, False])
def test_vocab_txt(tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {} if lower is None else {"do_lower_case": lower}
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = transformers.BertTokenizer.from_pretrained(tmp_path, **settings)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = tokenizers.load(path)
        assert tokenizer.vocab_size == len(VOCABULARY)
        for text in TEXTS:
            assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids
        template = tokenizer.template(pair=True)
        assert (template.prefix, template.middle, template.suffix) == ((2,), (3,), (3,))
        assert template.typed
    assert tokenizer.encode("[CLS]") != [2]


def gpt2(shared_data, folder):
    shutil.copy(shared_data / "tokenizers" / "gpt2_bpe_encoder.json", folder / "vocab.json")
    shutil.copy(shared_data / "tokenizers" / "gpt2_bpe_vocab.bpe", folder / "merges.txt")
    return folder


def test_gpt2_vocab_json_and_merges(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.load(gpt2(shared_data, tmp_path))
    reference = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (50257, 50256, 50256)
    assert tokenizer.templates is None


def test_roberta_vocab_json_and_merges(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    gpt2(shared_data, tmp_path)
    words = list(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    words = ["<s>", "<pad>", "</s>", "<unk>", *words[:-1], "<mask>"]
    numbers = {word: index for index, word in enumerate(words)}
    (tmp_path / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    tokenizer = tokenizers.load(tmp_path / "vocab.json")
    reference = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert [0, *ids, 2] == reference(text).input_ids
    template = tokenizer.template(pair=True)
    assert (template.prefix, template.middle, template.suffix) == ((0,), (2, 2), (2,))
    assert not template.typed
    assert (tokenizer.pad_id, tokenizer.mask_id) == (1, numbers["<mask>"])


def test_words_that_end_with_a_mark(tmp_path):
    """GPT's vocabulary: lower-cased words, the last piece of each ends in </w>."""
    letters = [*"lower", *(f"{c}</w>" for c in "lower")]
    words = {word: i for i, word in enumerate([*letters, "lo", "low</w>", "<unk>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\n")
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.encode("Low lower") == [words[w] for w in ("low</w>", "lo", "w", "e", "r</w>")]
    assert tokenizer.decode(tokenizer.encode("low")) == "low"
    assert tokenizer.unk_id == words["<unk>"]


def test_t5_sentencepiece(shared_data, tmp_path):
    """The ids that T5's authors give for this sentence."""
    wanted = [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]
    file = shared_data / "tokenizers" / "t5_tokenizer_base.model"
    shutil.copy(file, tmp_path / "spiece.model")
    for path in (file, tmp_path, tmp_path / "spiece.model"):
        tokenizer = tokenizers.load(path)
        assert tokenizer.encode("translate English to German: That is good.") == wanted
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (
        32000, 0, 1, 2,
    )  # fmt: skip
    assert tokenizer.bos_id == -1
    assert tokenizer.encode("  two\n blanks ") == tokenizer.encode("two blanks")
    assert tokenizer.encode("ﬁne") == tokenizer.encode("fine")  # the model's own normalisation
    assert tokenizer.decode(wanted) == "translate English to German: That is good."
    assert tokenizer.template().suffix == (1,)
    assert tokenizer.template(pair=True).middle == (1,)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 100}')
    assert tokenizers.load(tmp_path).sentinel_ids[0] == 32099
    tokenizer.save(tmp_path)  # a tokenizer.json is preferred, and the same
    assert tokenizers.load(tmp_path).encode("That is good.") == wanted[-4:]


def field(number, value):
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def model(pieces, *, kind=1, prefix=1):
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, sort))
        for text, score, sort in pieces
    )
    return content + field(2, field(3, kind)) + field(3, field(3, prefix) + field(4, 1))


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁a", -1.0, 1), ("b", -2.0, 1),
          ("ab", -2.5, 1), ("▁", -3.0, 1), ("a", -3.0, 1), ("▁ab", -5.0, 1)]  # fmt: skip


def test_small_unigram_models(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(PIECES))
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.encode("ab a") == [3, 4, 3]  # -3 beats -5 and -5.5
    assert tokenizer.encode("aab") == [3, 5]
    assert tokenizer.encode("x") == [6, 0]
    assert tokenizer.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.templates is None  # with both, models differ: see Tokenizer.template
    file.write_bytes(model(PIECES, prefix=0))
    assert tokenizers.load(file).encode("ab") == [5]


@pytest.mark.parametrize(
    ("marks", "single", "pair"),
    [
        (("[CLS]", "[SEP]"), ((4,), (), (5,)), ((4,), (5,), (5,))),
        (("<cls>", "<sep>"), ((), (), (5, 4)), ((), (5,), (5, 4))),
    ],
)
def test_albert_and_xlnet(tmp_path, marks, single, pair):
    specials = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces = [*specials, *((mark, 0.0, 3) for mark in marks), *PIECES[3:], ("1", -1.0, 1),
              (",", -3.0, 1), ("1,", -1.0, 1), ("Á", -1.0, 1)]  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model(pieces))
    tokenizer = tokenizers.load(tmp_path)
    for template, wanted in ((tokenizer.template(), single), (tokenizer.template(True), pair)):
        assert (template.prefix, template.middle, template.suffix) == wanted
    names = {index: piece for index, (piece, _, _) in enumerate(pieces)}
    assert [names[i] for i in tokenizer.encode("a1,")] == ["▁a", "1", ","]  # not "1,"
    assert [names[i] for i in tokenizer.encode("á")] == ["▁a"]  # accents go
    lower = {"[CLS]": ["▁a", "b"], "<cls>": ["▁", "<unk>"]}[marks[0]]
    assert [names[i] for i in tokenizer.encode("AB")] == lower
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": marks[0] == "<cls>", "keep_accents": True})
    )
    tokenizer = tokenizers.load(tmp_path)
    lower = {"<cls>": ["▁a", "b"], "[CLS]": ["▁", "<unk>"]}[marks[0]]
    assert [names[i] for i in tokenizer.encode("AB")] == lower


def test_marian_has_its_own_numbers(tmp_path):
    (tmp_path / "source.spm").write_bytes(model(PIECES))
    order = ["</s>", "<unk>", "▁ab", ">>deu<<", "a", "▁", "ab", "b", "▁a", "zwei", "<pad>"]
    ids = {token: index for index, token in enumerate(order)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.encode("ab a") == [ids[t] for t in ("▁a", "b", "▁a")]
    assert tokenizer.encode(">>deu<< a") == [3, ids["▁a"]]
    assert tokenizer.encode("zwei") != [ids["zwei"]]  # it is of the other language
    assert tokenizer.decode([9]) == "zwei"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 10, 1)
    assert tokenizer.template().suffix == (0,)
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<unk>": 7}))
    with pytest.raises(UserError, match="must number its tokens from 0"):
        tokenizers.load(tmp_path)


BAD = {  # file: content, what the line must name
    "vocab.txt": (b"a\nb\na\n", "'a' stands in two lines"),
    "vocab.json": (b'{"a": 0}', "needs a merges.txt"),
    "spiece.model": (model(PIECES)[:40], "not a SentencePiece model"),
    "x.model": (b"", "not a SentencePiece model"),
    "tokenizer.model": (model(PIECES, kind=2), r"BPE model of SentencePiece.*tokenizer.json"),
    "sentencepiece.bpe.model": (b"\xff" * 100, "not a SentencePiece model"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_in_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.load(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_every_cut_of_a_model_is_told():
    data = model(PIECES)
    for length in range(len(data)):
        try:
            sentencepiece.parse(data[:length], "x")
        except UserError as error:
            assert "\n" not in str(error)
