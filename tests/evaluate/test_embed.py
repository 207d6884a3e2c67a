"""Sentence embeddings: pooling by hand, batch mates and padding, files, similarity."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteTokenizer, CharTokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate import embed, metrics
from jaxformer.models import encoder, encoder_decoder

TOKENIZER = ByteTokenizer()
CLS, SEP = TOKENIZER.cls_id, TOKENIZER.sep_id
TEXTS = ["a cat", "", "a much longer text about a dog in a park", "übel", "a cat", "x" * 100]
MAX = 40


@pytest.fixture(scope="module")
def bert():
    model = encoder.make(
        encoder.Config(
            vocab_size=262, num_layers=2, width=16, num_heads=4, max_length=MAX, pooler=True,
            num_token_types=2, init_std=0.3,
        )
    )  # fmt: skip
    return model, jax.jit(model.init)(jax.random.key(0)), TOKENIZER


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens_BT):
    return model.apply(params, {"tokens": tokens_BT}).hidden_BTD[0]


def hidden_by_hand(model, params, text):
    """Of one text alone, without padding."""
    ids = [CLS, *TOKENIZER.encode(text)[: MAX - 2], SEP]
    return np.asarray(read(model, params, jnp.array([ids])))


@pytest.fixture(scope="module")
def hidden(bert):
    return [hidden_by_hand(*bert[:2], text) for text in TEXTS]


def test_pooling_by_hand(bert, hidden):
    pooler = jax.tree.map(np.asarray, bert[1]["pooler"])
    by_hand = {
        "mean": [h.mean(axis=0) for h in hidden],
        "first": [h[0] for h in hidden],
        "last": [h[-1] for h in hidden],
        "pooler": [np.tanh(h[0] @ pooler["kernel"] + pooler["bias"]) for h in hidden],
    }
    assert set(by_hand) == set(embed.POOLING)
    for pooling, want in by_hand.items():
        found = embed.embed_texts(*bert, TEXTS, pooling=pooling, batch_size=4)
        assert found.shape == (6, 16) and found.dtype == np.float32
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_the_pooler_is_read_whatever_the_classifier_reads(bert):
    model, params, tokenizer = bert
    means = encoder.make(dataclasses.replace(model.config, pooling="mean"))
    want = embed.embed_texts(*bert, TEXTS[:2], pooling="pooler")
    found = embed.embed_texts(means, params, tokenizer, TEXTS[:2], pooling="pooler")
    np.testing.assert_array_equal(found, want)


def test_batch_mates_and_padding_change_nothing(bert):
    together = embed.embed_texts(*bert, TEXTS)
    for batch_size in (1, 2):
        alone = embed.embed_texts(*bert, TEXTS[::-1], batch_size=batch_size)[::-1]
        np.testing.assert_allclose(alone, together, atol=1e-5)
    assert np.array_equal(together[0], together[4])


def test_unit_length(bert):
    vectors = embed.embed_texts(*bert, TEXTS, normalise=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    plain = embed.embed_texts(*bert, TEXTS)
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=1)[:, None], rtol=1e-5)
    assert not embed.unit(np.zeros((1, 3), np.float32)).any()


def test_a_decoder_reads_the_text_alone(speaker):
    found = embed.embed_texts(*speaker.all, ["abc", ""], pooling="last")
    for row, ids in enumerate([[97, 98, 99], [261]]):
        want = read(speaker.model, speaker.params, jnp.array([ids]))[-1]
        np.testing.assert_allclose(found[row], want, atol=1e-5)


def test_a_file_of_lines(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BLOCK", 4)  # the file is embedded in two parts
    source, out = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    assert embed.embed_file(*bert, source, out, normalise=True) == (6, 16)
    found = np.load(out)
    want = embed.embed_texts(*bert, TEXTS, normalise=True)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "vectors.npy"]


def test_a_failure_leaves_no_file(bert, tmp_path):
    source, out = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    source.write_text("a\n")
    with pytest.raises(UserError, match="pooling"):
        embed.embed_file(*bert, source, out, pooling="max")
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]
    source.write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        embed.embed_file(*bert, source, out)
    source.write_text("")
    with pytest.raises(UserError, match="no lines"):
        embed.embed_file(*bert, source, out)
    with pytest.raises(UserError, match="cannot read"):
        embed.embed_file(*bert, tmp_path / "none.txt", out)
    source.write_text("a\n")
    with pytest.raises(UserError, match="cannot write"):
        embed.embed_file(*bert, source, tmp_path / "none" / "vectors.npy")


ROWS = [("a cat", "a cat", 5.0), ("a cat", "", 0.5), ("übel", "a dog", 2.0), ("a dog", "", 1.0)]


def test_similarity_by_hand(bert):
    cosines = []
    for a, b, _ in ROWS:
        u, v = (hidden_by_hand(*bert[:2], text).mean(axis=0) for text in (a, b))
        cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    found = embed.similarity(*bert, ROWS)
    scores = [score for _, _, score in ROWS]
    assert found["spearman"] == metrics.spearman(cosines, scores)["spearman"]
    assert found["pearson"] == pytest.approx(metrics.pearson(cosines, scores)["pearson"], abs=1e-4)


def test_pairs_from_a_file(tmp_path):
    path = tmp_path / "sts.tsv"
    lines = "".join(f"{a}\t{b}\t{score}\n" for a, b, score in ROWS)
    path.write_text(lines, encoding="utf-8")
    assert embed.read_pairs(path) == ROWS
    path.write_text("sentence1\tsentence2\tscore\n" + lines, encoding="utf-8")
    assert embed.read_pairs(path) == ROWS
    path.write_text(lines + "a\tb\tmuch\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 5: .*is not a text, a text and a number"):
        embed.read_pairs(path)
    path.write_text("a,b,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        embed.read_pairs(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no rows"):
        embed.read_pairs(path)


def test_mistakes_are_told_in_one_line(bert, speaker):
    with pytest.raises(UserError, match="did you mean 'mean'"):
        embed.embed_texts(*bert, TEXTS, pooling="men")
    with pytest.raises(UserError, match="this model has none"):
        embed.embed_texts(*speaker.all, TEXTS, pooling="pooler")
    with pytest.raises(UserError, match="reads 1 to 40"):
        embed.embed_texts(*bert, TEXTS, max_length=41)
    with pytest.raises(UserError, match="needs 3 at least"):
        embed.embed_texts(*bert, TEXTS, max_length=2)
    with pytest.raises(UserError, match="has neither of them"):
        embed.embed_texts(*bert[:2], CharTokenizer("abc"), ["a"])
    with pytest.raises(UserError, match="text 1 is empty"):
        embed.embed_texts(*speaker.all[:2], CharTokenizer("abc"), ["a", ""])
    small = encoder.make(encoder.Config(vocab_size=20, num_layers=1, width=8, num_heads=2))
    with pytest.raises(UserError, match="vocabulary has 20"):
        embed.embed_texts(small, {}, TOKENIZER, ["a"])
    both = encoder_decoder.make(
        encoder_decoder.Config(vocab_size=20, num_layers=1, width=8, num_heads=2)
    )
    with pytest.raises(UserError, match="this model has both"):
        embed.embed_texts(both, {}, TOKENIZER, ["a"])
    assert embed.embed_texts(*bert, []).shape == (0, 16)
