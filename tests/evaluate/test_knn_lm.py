"""A store is what the model really saw; mixing it in is what the formula says, in float64."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteTokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate import datastore, knn_lm, likelihood, nearest_faiss
from jaxformer.models import decoder, recurrent
from tests.evaluate.conftest import MAX_LENGTH

TEXT = "".join(f"the {i}th line, of {i * i % 97} words and a few more.\n" for i in range(12))
OTHER = "a line, of 12 words and the 40th of more lines.\nof words, of lines, a few."


@pytest.fixture(scope="module")
def store(speaker, tmp_path_factory):
    """(folder, opened) of a store of TEXT."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    ids = speaker.tokenizer.encode(TEXT)
    count = datastore.build(folder, *speaker.all, ids, dtype="float32")
    assert count == len(ids)
    return folder, datastore.open_datastore(folder, *speaker.all)


def sweep(store, speaker, text=OTHER, **options):
    return knn_lm.sweep(store[1], *speaker.all, speaker.tokenizer.encode(text), **options)


def by_hand(speaker, ids, stride=MAX_LENGTH // 2):
    """Keys, tokens that follow and log-probabilities of a text, window by window, by `apply`."""
    prefix = [likelihood.start_id(speaker.tokenizer)]
    keys, values, log_probs = [], [], []
    for window in likelihood.windows_of(0, prefix, ids, MAX_LENGTH, stride):
        tokens_1T = np.asarray(window.tokens, np.int32)[None]
        out = speaker.model.apply(
            speaker.params, {"tokens": tokens_1T[:, :-1]}, return_feed_input=True
        )
        log_prob_TV = jax.nn.log_softmax(speaker.model.logits(speaker.params, out.hidden_BTD))[0]
        for t in range(len(window.tokens) - 1 - window.scored, len(window.tokens) - 1):
            keys.append(np.asarray(out.feed_input_BTD[0, t], np.float64))
            values.append(int(window.tokens[t + 1]))
            log_probs.append(float(log_prob_TV[t, window.tokens[t + 1]]))
    return np.array(keys), np.array(values), np.array(log_probs)


def test_a_store_holds_every_token_after_what_the_model_read(speaker, store):
    keys_ND, values_N, _ = by_hand(speaker, speaker.tokenizer.encode(TEXT))
    found = store[1]
    # All windows are of one padded length here, so that they are read in their order.
    np.testing.assert_array_equal(found.values_N, values_N)
    np.testing.assert_allclose(found.keys_ND, keys_ND, rtol=1e-3, atol=1e-4)
    assert isinstance(found.keys_ND, np.memmap) and not found.keys_ND.flags.writeable
    assert found.meta["variance"] == pytest.approx(keys_ND.var(axis=0).sum(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("neighbours", "temperature"), [(3, 2.0), (40, 11.0)])
def test_the_loss_is_that_of_the_formula(speaker, store, neighbours, temperature):
    keys_ND, values_N, _ = by_hand(speaker, speaker.tokenizer.encode(TEXT))
    q_QD, target_Q, lm_Q = by_hand(speaker, speaker.tokenizer.encode(OTHER))
    found = sweep(store, speaker, neighbours=neighbours, temperatures=[temperature],
                  lambdas=[0.0, 0.3, 0.8])  # fmt: skip
    distances_QN = np.square(q_QD[:, None] - keys_ND[None]).sum(-1)
    nearest_QK = np.argsort(distances_QN, axis=1)[:, :neighbours]
    weight_QK = np.exp(-np.take_along_axis(distances_QN, nearest_QK, axis=1) / temperature)
    hit_QK = values_N[nearest_QK] == target_Q[:, None]
    knn_Q = (weight_QK * hit_QK).sum(axis=1) / weight_QK.sum(axis=1)
    assert sum(found.tokens) == len(target_Q)
    for share in (0.0, 0.3, 0.8):
        loss_Q = -np.log(share * knn_Q + (1 - share) * np.exp(lm_Q))
        halves = np.split(loss_Q, [found.tokens[0]])
        want = [half.mean() for half in halves]
        np.testing.assert_allclose(found.loss[share, temperature], want, rtol=1e-4)


def test_lambda_0_is_the_model_alone(speaker, store):
    found = sweep(store, speaker, lambdas=[0.0], temperatures=[1.0, 5.0])
    assert found.loss[0.0, 1.0] == found.loss[0.0, 5.0] == found.base
    whole = likelihood.perplexity(*speaker.all, OTHER)
    assert sum(found.tokens) == whole["tokens"]
    both = np.dot(found.base, found.tokens) / sum(found.tokens)
    assert both == pytest.approx(whole["loss"], rel=1e-12)


def test_a_store_that_holds_the_text_knows_it(speaker, store):
    found = sweep(store, speaker, TEXT, lambdas=[0.5, 1.0], temperatures=[0.01], neighbours=8)
    assert max(found.loss[1.0, 0.01]) < 0.05 < min(found.base)
    assert found.best == (1.0, 0.01)


def test_the_choice_is_made_on_the_first_half_and_marked(speaker, store):
    loss = {(0.0, 1.0): (2.0, 2.0), (0.5, 1.0): (1.0, 3.0), (0.0, 4.0): (2.0, 2.0),
            (0.5, 4.0): (1.5, 1.0)}  # fmt: skip
    found = knn_lm.Sweep(loss, (2.0, 2.0), (10, 12))
    assert found.best == (0.5, 1.0)
    lines = knn_lm.table(found)
    assert [line for line in lines if "*" in line] == ["  0.5          2.718*      4.482"]
    assert lines[-2].split()[-1] == f"{math.exp(2):.3f}"
    assert f"{math.exp(3):.3f}   lambda=0.5 temperature=1" in lines[-1]


def test_tokens_may_be_fewer_and_are_from_all_over_the_text(speaker, tmp_path):
    ids = speaker.tokenizer.encode(TEXT)
    windows = datastore.cut(speaker.model, speaker.tokenizer, ids, 0, 0, 120)
    assert 120 - 24 < sum(window.scored for window in windows) <= 120  # the last may be short
    assert windows[-1].tokens[-1] == ids[-1] and windows[0].tokens[1:].tolist() == ids[:MAX_LENGTH]
    assert [window.pair for window in windows] == list(range(5))
    count = datastore.build(tmp_path / "few", *speaker.all, ids, max_tokens=48)
    assert 24 < count <= 48
    found = datastore.open_datastore(tmp_path / "few", *speaker.all)
    assert found.keys_ND.dtype == np.float16 and found.keys_ND.shape == (count, 16)
    few = knn_lm.sweep(found, *speaker.all, ids, max_tokens=30, neighbours=99)  # more than all
    assert sum(few.tokens) <= 30 and all(map(math.isfinite, min(few.loss.values())))


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_stores_of_others_are_refused(speaker, rope_speaker, store):
    folder = store[0]
    refused(lambda: datastore.open_datastore(folder, *rope_speaker.all), "another model")
    other = speaker.tokenizer.with_sentinels(3)
    refused(lambda: datastore.open_datastore(folder, speaker.model, speaker.params, other),
            "another tokenizer")  # fmt: skip
    wide = decoder.make(dataclasses.replace(speaker.model.config, width=32))
    refused(lambda: datastore.open_datastore(folder, wide, speaker.params, speaker.tokenizer),
            "width 16", "32 wide")  # fmt: skip
    lstm = recurrent.make(recurrent.Config(vocab_size=ByteTokenizer().vocab_size, width=16))
    refused(lambda: datastore.open_datastore(folder, lstm, {}, speaker.tokenizer), "a decoder")


@pytest.mark.parametrize("name", ["keys.npy", "values.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_store_is_refused(speaker, store, tmp_path, name, damage):
    folder = tmp_path / "store"
    shutil.copytree(store[0], folder)
    data = bytearray((folder / name).read_bytes())
    if damage == "gone":
        (folder / name).unlink()
    else:
        data[-3] ^= 1
        (folder / name).write_bytes(data[:-5] if damage == "cut" else data)
    words = ("damaged", "jaxformer datastore") if (name, damage) != ("meta.json", "gone") else ()
    refused(lambda: datastore.open_datastore(folder, *speaker.all), str(folder), *words)


def test_what_is_no_store_is_refused(speaker, store, tmp_path):
    refused(lambda: datastore.open_datastore(tmp_path / "gone", *speaker.all), "is no folder")
    refused(lambda: datastore.open_datastore(tmp_path, *speaker.all), "no meta.json")
    ids = speaker.tokenizer.encode(TEXT)
    refused(lambda: datastore.build(store[0], *speaker.all, ids), "is there already")
    refused(lambda: datastore.build(tmp_path / "a" / "b", *speaker.all, ids), "no folder")
    refused(lambda: datastore.build(tmp_path / "x", *speaker.all, []), "0 tokens")
    refused(lambda: datastore.build(tmp_path / "x", *speaker.all, ids, dtype="int8"), "int8")
    big = jax.tree.map(lambda leaf: 1e6 * leaf, speaker.params)
    refused(lambda: datastore.build(tmp_path / "x", speaker.model, big, speaker.tokenizer, ids),
            "--dtype=float32")  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # nothing half made stays


def test_an_empty_store_is_refused(speaker, tmp_path):
    from jaxformer.evaluate import stored

    with stored.creating(tmp_path / "empty", "datastore") as writer:
        writer.append("keys", np.zeros((0, 16), np.float16))
        writer.append("values", np.zeros(0, np.int32))
        writer.meta = datastore.identity(speaker.params, speaker.tokenizer)
    assert (
        json.loads((tmp_path / "empty" / "meta.json").read_text())["files"]["keys"]["shape"][0] == 0
    )
    refused(lambda: datastore.open_datastore(tmp_path / "empty", *speaker.all), "is empty")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(neighbours=0), "--neighbours=0"),
        (dict(lambdas=[0.5, 1.2]), "0 to 1"),
        (dict(temperatures=[0.0]), "above 0"),
        (dict(text="a"), "too few"),
        (dict(max_tokens=1), "two tokens"),
    ],
)
def test_wrong_numbers_are_named(speaker, store, options, words):
    refused(lambda: sweep(store, speaker, **options), words)


def test_faiss_finds_the_same(speaker, store):
    pytest.importorskip("faiss")
    q_QD = np.asarray(store[1].keys_ND[5:9]) + 0.01
    want = datastore.search(store[1], q_QD, 6)
    for kind in nearest_faiss.KINDS:  # so small a store is searched exactly by both
        found = nearest_faiss.searcher(store[1], kind)(store[1], q_QD, 6)
        np.testing.assert_allclose(found[0], want[0], rtol=1e-4, atol=1e-4)
    keys_ND = np.random.default_rng(0).standard_normal((26_000, 8)).astype(np.float16)
    large = datastore.Datastore(keys_ND, np.arange(26_000, dtype=np.int32), {})
    want = datastore.search(large, keys_ND[:20], 5)[1]
    found = nearest_faiss.searcher(large, "faiss_ivf")(large, keys_ND[:20], 5)[1]
    assert (found[:, 0] == np.arange(20)).all() and (found == want).mean() > 0.7


def test_without_faiss_one_line_says_how_to_get_it(store, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    refused(lambda: nearest_faiss.searcher(store[1], "faiss"), 'pip install "jaxformer[faiss]"')
    refused(lambda: nearest_faiss.searcher(store[1], "flat"), "--search", "faiss_ivf")
