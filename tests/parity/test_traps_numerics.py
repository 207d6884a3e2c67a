"""Traps of numbers and of files: what others let through in silence, beside what ours does.

Each test does both: the usual way, which goes wrong without a word, and ours.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop, ops
from jaxformer.data import tokenizers
from jaxformer.errors import UserError
from jaxformer.interop import finite, reader
from jaxformer.models import decoder
from jaxformer.objectives import masked_lm
from tests.interop.conftest import make_model, random_params
from tests.objectives import test_masked_lm as masking

B, T, N, H, V = 2, 5, 2, 4, 7
RNG = np.random.default_rng(0)
Q, K, VALUES = (RNG.normal(size=(B, T, N, H)).astype(np.float32) for _ in range(3))


def test_a_row_that_sees_nothing_is_zero_and_not_the_mean_of_all_values():
    seen_BTS = np.ones((B, 1, T, T), bool)
    seen_BTS[0, :, 2] = False
    seen_BTS = jnp.asarray(seen_BTS)
    theirs = jax.jit(jax.nn.dot_product_attention)(Q, K, VALUES, mask=seen_BTS)
    np.testing.assert_allclose(theirs[0, 2], VALUES[0].mean(axis=0), rtol=1e-5)

    def total(q):
        ours = ops.attention(q, K, VALUES, mask=ops.masks.explicit(seen_BTS))
        return jnp.sum(ours * ours), ours

    gradient, ours = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(Q))
    assert (np.asarray(ours[0, 2]) == 0).all() and (np.asarray(gradient[0, 2]) == 0).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@pytest.mark.parametrize("wrong", [V, -1, 2**31 - 1])
def test_an_id_beyond_the_table_is_nan_and_not_another_row(wrong):
    table_VD = RNG.normal(size=(V, 3)).astype(np.float32)
    ids = jnp.asarray([0, wrong], jnp.int32)
    silent = np.asarray(jnp.asarray(table_VD)[ids])
    np.testing.assert_array_equal(silent[1], table_VD[V - 1])
    ours = np.asarray(ops.embed(ids, table_VD))
    assert np.isnan(ours[1]).all()
    np.testing.assert_array_equal(ours[0], table_VD[0])


@pytest.mark.parametrize("wrong", [V, -1])
def test_a_label_beyond_the_vocabulary_is_nan_and_not_another_token(wrong):
    logits = jnp.asarray(RNG.normal(size=(2, V)), jnp.float32)
    labels = jnp.asarray([1, wrong])
    silent = jax.nn.log_softmax(logits)[jnp.arange(2), labels]
    assert np.isfinite(silent).all()
    loss, _ = ops.cross_entropy(logits, labels)
    assert np.isnan(loss)
    loss, count = ops.cross_entropy(logits, labels, weights=jnp.asarray([1.0, 0.0]))
    np.testing.assert_allclose(loss, -silent[0], rtol=1e-6)
    assert count == 1


def test_a_text_longer_than_the_positions_is_nan_and_not_the_last_position():
    model = decoder.make(decoder.Config(vocab_size=V, width=8, num_heads=2, num_layers=1,
                                        max_length=4, unroll=1))  # fmt: skip
    params = random_params(model)
    silent = jnp.asarray(params["embed"]["positions"])[jnp.arange(6)]
    np.testing.assert_array_equal(silent[5], params["embed"]["positions"][3])
    for length in (4, 6):
        hidden = model.apply(params, {"tokens": jnp.zeros((1, length), jnp.int32)}).hidden_BTD
        assert np.isnan(hidden).any() == (length > 4)


# BERT's and RoBERTa's masking: tests of test_masked_lm.py, which must fail for another way.
MASKINGS = {
    "all of them masked": (masking.test_eighty_ten_ten, masked_lm.Config(mask=1.0, random=0.0)),
    "none left as it is": (masking.test_eighty_ten_ten, masked_lm.Config(mask=0.8, random=0.2)),
    "a tenth of the tokens": (masking.test_fifteen_percent_of_each_row, masked_lm.Config(rate=0.1)),
}


@pytest.mark.parametrize("mistake", MASKINGS)
def test_other_rates_of_masking_are_seen(mistake, monkeypatch):
    test, other = MASKINGS[mistake]
    monkeypatch.setattr(masking, "Config", lambda: other)
    with pytest.raises(AssertionError):
        test()


def test_a_masking_that_is_not_dynamic_is_seen(monkeypatch):
    true = masking.corrupt
    monkeypatch.setattr(
        masking, "corrupt", lambda given, key, *a, **k: true(given, jax.random.key(0), *a, **k)
    )
    with pytest.raises(AssertionError):
        masking.test_dynamic_and_by_row()


VOCABULARIES = {
    "an id twice": ({"a": 0, "b": 1, "c": 1}, "'[bc]' and '[bc]' both have id 1"),
    "an id of 2**31": ({"a": 0, "b": 2**31}, "highest of its 2 tokens' ids is 2147483648"),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_tokenizer_whose_ids_are_wrong_is_refused(case, tmp_path):
    library = pytest.importorskip("tokenizers")
    ids, words = VOCABULARIES[case]
    text = json.dumps({"model": {"type": "WordLevel", "vocab": ids, "unk_token": "a"}})
    assert library.Tokenizer.from_str(text).get_vocab() == ids  # which the library takes
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=words):
        tokenizers.load(tmp_path / "tokenizer.json")


@pytest.fixture
def checkpoint(tmp_path):
    """A small GPT-2 as published, and a function that changes its tensors or its header."""
    from safetensors.numpy import load_file, save_file

    model = make_model("gpt2", num_layers=1)
    interop.save_huggingface(tmp_path / "made", model, random_params(model), model_type="gpt2")
    path = tmp_path / "made" / "model.safetensors"

    def change(tensors=lambda found: None, header=lambda text: text):
        found = load_file(path)
        tensors(found)
        save_file(found, path)
        whole = path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        head = header(whole[8 : 8 + size])
        path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + size :])
        return load_file(path)  # which the library takes

    interop.load_huggingface(tmp_path / "made")
    return tmp_path / "made", change


ESCAPING = "../../etc/x"
NORM = "transformer.h.0.ln_1.bias"


def test_a_tensor_named_like_a_path_is_refused(checkpoint):
    folder, change = checkpoint
    found = change(lambda tensors: tensors.update({ESCAPING: np.ones(2, np.float32)}))
    assert ESCAPING in found
    with pytest.raises(UserError, match=f"no rule of gpt2 reads '{ESCAPING}'"):
        interop.load_huggingface(folder)


def test_a_name_given_twice_is_refused(checkpoint):
    folder, change = checkpoint
    first = f'{{"{NORM}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},'.encode()
    found = change(header=lambda text: first + text.lstrip(b"{ "))
    assert found[NORM].shape == (24,)  # one of the two, without a word
    with pytest.raises(UserError, match=f"the key '{NORM}' stands there twice"):
        interop.load_huggingface(folder)


def test_weights_that_are_no_numbers_are_refused(checkpoint):
    folder, change = checkpoint
    finite.refuse(folder)
    found = change(lambda tensors: tensors[NORM].__setitem__(3, np.nan))
    assert np.isnan(found[NORM]).sum() == 1
    with pytest.raises(UserError, match=f"'{NORM}' holds NaN or infinity in 1 of its 24 numbers"):
        finite.refuse(folder)


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    folder, _ = checkpoint
    rows = reader.read_header(folder / "model.safetensors")["transformer.wte.weight"].shape[0]
    text = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": rows}, "unk_token": "a"}}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match=f"ids up to {rows}, but the embedding has {rows} rows"):
        interop.load_huggingface(folder)
    text["model"]["vocab"]["b"] = rows - 1
    (folder / "tokenizer.json").write_text(json.dumps(text))
    interop.load_huggingface(folder)
