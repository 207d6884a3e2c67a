"""Attention over the best entries of a memory, against sorting in numpy; and the memory itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention import attention, memory, memory_ring
from jaxformer.ops.attention.memory import gated, memory_attention, search, span
from tests.ops import reference
from tests.ops.jaxprs import equations

B, T, M, N, K, H = 2, 7, 19, 4, 2, 8


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, M, K, H), rand(2, B, M, K, H)
FIRST, STOP = np.random.default_rng(0).integers(0, 6, (2, B, T))
PLACES = np.random.default_rng(1).integers(-1, 6, (B, M))
MASKS = {
    "none": None,
    "lengths": masks.lengths(jnp.array([0, 5])),
    "segments": masks.segments(*(jnp.arange(B * n).reshape(B, n) % 3 for n in (T, M))),
    "span": span(FIRST, STOP, PLACES),
    "explicit": masks.explicit(jax.random.bernoulli(jax.random.key(5), 0.3, (B, N, T, M))),
}  # fmt: skip


def sorted_by_hand(scores, k):
    """Values and places of the k best of each row; of equals the first."""
    index = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(scores, index, axis=-1), index


def scores_of(q, keys, mask=None):
    """[B, N, T, M] float64."""
    q, keys = np.asarray(q, np.float64), np.asarray(keys, np.float64)
    keys = np.repeat(keys, q.shape[2] // keys.shape[2], axis=2)
    found = np.einsum("btnh,bmnh->bntm", q, keys)
    if mask is None:
        return found
    return np.where(masks.materialise(mask, q.shape[1], keys.shape[1]), found, -np.inf)


def by_hand(q, keys, values, k, mask=None):
    """The paper's sentence: dot products, the top k, softmax, the weighted sum."""
    scores = scores_of(q, keys, mask)
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, sorted_by_hand(scores, k)[1], True, axis=-1)
    return reference.attention(q, keys, values, mask=kept & np.isfinite(scores))


@pytest.mark.parametrize("name", MASKS)
def test_it_is_softmax_over_the_best(name):
    mask = MASKS[name]
    run = jax.jit(
        lambda q, k, v: memory_attention(q, k, v, top_k=4, mask=mask, return_weights=True)
    )
    out, weights = run(Q, KEYS, V)
    expected, expected_weights = by_hand(Q, KEYS, V, 4, mask)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-6)
    assert (np.asarray(weights) > 0).sum(axis=-1).max() == 4
    empty = ~np.isfinite(scores_of(Q, KEYS, mask)).any(axis=-1)
    assert empty.any() == (name in ("lengths", "segments", "span"))
    assert (np.moveaxis(np.asarray(out), 1, 2)[empty] == 0).all()


def test_all_entries_are_plain_attention():
    """Fewer entries than k: all of them."""
    for top_k in (M, 50):
        out = memory_attention(Q, KEYS, V, top_k=top_k, scale=0.3)
        np.testing.assert_allclose(out, attention(Q, KEYS, V, scale=0.3), atol=2e-6)


@pytest.mark.parametrize("S", [1000, 2049, 16384, 20000])
def test_best_equals_a_stable_sort(S):
    x = np.random.default_rng(S).normal(size=(3, S)).astype(np.float32)
    x[1] = np.round(x[1])  # many equals: the first of them are wanted
    x[2, 5:] = -np.inf  # fewer than k
    values, index = jax.jit(lambda x: memory.best(x, 9))(x)
    expected, expected_index = sorted_by_hand(x, 9)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(index, expected_index)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_long_memory_searched_in_blocks(approximate, monkeypatch):
    monkeypatch.setattr(memory, "SCORES", 3 * 2048 * B)  # 3 queries of one head at a time
    long = rand(3, B, 2000, N, H)  # not a whole number of groups
    mask = masks.lengths(jnp.array([2000, 1500]))
    found, index = search(Q, long, top_k=5, mask=mask, scale=1.0, approximate=approximate)
    values, places = sorted_by_hand(scores_of(Q, long, mask), 5)
    np.testing.assert_allclose(found, np.moveaxis(values, 1, 2), rtol=1e-5)
    rows = (x.reshape(-1, 5) for x in (np.asarray(index), np.moveaxis(places, 1, 2)))
    recall = np.mean([np.isin(*both).mean() for both in zip(*rows)])
    assert recall >= 0.9


def test_blocks_and_one_block_agree(monkeypatch):
    run = functools.partial(memory_attention, Q, KEYS, V, top_k=3, mask=MASKS["explicit"])
    whole = run()
    monkeypatch.setattr(memory, "SCORES", 2 * M * B)
    monkeypatch.setattr(memory, "RETRIEVED", 5 * 3 * H * B)
    np.testing.assert_allclose(run(), whole, atol=1e-6)


def test_no_block_holds_all_scores(monkeypatch):
    monkeypatch.setattr(memory, "SCORES", 2**15)
    long = rand(3, 1, 4096, 1, H)
    loss = lambda q: memory_attention(q, long, long, top_k=2).sum()  # noqa: E731
    traced = jax.make_jaxpr(jax.grad(loss))(rand(4, 1, 512, 1, H))
    sizes = [x.aval.size for eqn in equations(traced.jaxpr) for x in eqn.outvars]
    assert max(sizes) <= 2**15 < 512 * 4096


@pytest.mark.slow
def test_gradients_reach_the_queries_alone():
    def loss(q, k, v):
        return jnp.sin(3 * memory_attention(q, k, v, top_k=4, mask=MASKS["lengths"])).sum()

    of_q, of_k, of_v = jax.grad(loss, argnums=(0, 1, 2))(Q, KEYS, V)
    assert (of_k == 0).all() and (of_v == 0).all()
    assert (of_q[0] == 0).all()  # its memory is empty
    kept = by_hand(Q, KEYS, V, 4, MASKS["lengths"])[1] > 0  # which ones does not change

    def dense_loss(q):
        return jnp.sin(3 * attention(q, KEYS, V, mask=masks.explicit(kept))).sum()

    np.testing.assert_allclose(of_q, jax.grad(dense_loss)(Q), atol=1e-5)


def test_an_empty_memory_gives_zero():
    run = lambda q, m: memory_attention(q, KEYS[:, :m], V[:, :m], return_weights=True)  # noqa: E731
    out, weights = run(Q, 0)
    assert out.shape == Q.shape and (out == 0).all() and weights.shape == (B, N, T, 0)
    ring = memory_ring.init_memory(B, 5, K, H)
    seen = memory_ring.seen(ring, jnp.ones((B, T), jnp.int32))
    loss = lambda q: memory_attention(q, ring["k"], ring["v"], mask=seen).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(Q)
    assert value == 0 and (gradient == 0).all()


def test_transformations_and_bf16():
    run = functools.partial(memory_attention, top_k=3)
    whole = run(Q, KEYS, V)
    rows = (x[:, None] for x in (Q, KEYS, V))
    np.testing.assert_allclose(jax.vmap(run)(*rows)[:, 0], whole, atol=1e-6)
    _, scanned = jax.lax.scan(lambda _, q: (None, run(q[:, None], KEYS, V)), None, Q.swapaxes(0, 1))
    np.testing.assert_allclose(scanned[:, :, 0].swapaxes(0, 1), whole, atol=1e-6)
    low = [x.astype(jnp.bfloat16) for x in (Q, KEYS, V)]
    out = memory_attention(*low, top_k=3)
    assert out.dtype == jnp.bfloat16
    q, k, v = (x.astype(jnp.float32) for x in low)
    expected, _ = by_hand(q, k, v, 3)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)


def test_rows_split_over_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec("data")
    loss = lambda q, k, v: memory_attention(q, k, v, top_k=3, mask=masks.causal())  # noqa: E731
    split = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=(P, P, P), out_specs=P))
    np.testing.assert_allclose(split(Q, KEYS, V), loss(Q, KEYS, V), atol=1e-6)


def test_the_gate_mixes_and_its_ends_choose():
    near, far = rand(6, B, T, N, H), rand(7, B, T, N, H)
    gate = jnp.array([-200.0, 200.0, 0.0, 1.0])
    out = np.asarray(gated(near, far, gate))
    np.testing.assert_array_equal(out[:, :, 0], near[:, :, 0])
    np.testing.assert_array_equal(out[:, :, 1], far[:, :, 1])
    g = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(out[:, :, 2], (near[:, :, 2] + far[:, :, 2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(out[:, :, 3], g * far[:, :, 3] + (1 - g) * near[:, :, 3], atol=1e-6)


def test_the_ring_holds_the_last_entries():
    ring, texts = memory_ring.init_memory(B, 5, K, H), [[], []]
    append = jax.jit(memory_ring.append)
    for number, length in enumerate((3, 4, 1, 12, 2)):
        k, v = rand(number, B, length, K, H), rand(10 + number, B, length, K, H)
        new = jnp.array([False, number == 2])
        ring = append(ring, k, v, new)
        texts[1] = [] if number == 2 else texts[1]
        for row in range(B):
            texts[row] = (texts[row] + [*zip(np.asarray(k[row]), np.asarray(v[row]))])[-5:]
            valid = np.asarray(ring["segment_ids"][row]) != 0
            held = {x.tobytes() for x in np.asarray(ring["k"][row])[valid]}
            assert held == {x.tobytes() for x, _ in texts[row]}
            both = np.concatenate([np.asarray(ring[name][row])[valid] for name in "kv"], axis=-1)
            wanted = np.array([np.concatenate(pair, axis=-1) for pair in texts[row]])
            assert sorted(both.ravel().tolist()) == sorted(wanted.ravel().tolist())


def test_the_ring_tells_documents_apart():
    ring = memory_ring.init_memory(1, 6, K, H)
    ids = jnp.array([[1, 1, 0, 2]])
    ring = memory_ring.append(ring, KEYS[:1, :4], V[:1, :4], segment_ids_BT=ids)
    seen = memory_ring.seen(ring, jnp.array([[1, 2, 0, 3]]))
    found = masks.materialise(seen, 4, 6)[0, 0]
    assert found.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6, [0] * 6
    ]  # fmt: skip


@pytest.mark.parametrize("call,words", [
    (lambda: search(Q, KEYS, top_k=0), "top_k is 0"),
    (lambda: search(Q, KEYS[:1]), r"must be \[B, T, N, H\]"),
    (lambda: search(Q[:, :, :3], KEYS), "2 key/value heads do not divide 3"),
    (lambda: search(Q, KEYS, mask=jnp.ones((T, M), bool)), "mask must be a spec"),
    (lambda: memory_attention(Q, KEYS, V[:, :3]), "must have one shape"),
    (lambda: memory_attention(Q, KEYS, V, bias=jnp.zeros((T, M))), "bias must be None"),
    (lambda: gated(Q, Q, jnp.zeros(3)), "gate"),
    (lambda: memory_ring.init_memory(1, 0, K, H), "at least 1 entry"),
    (lambda: memory_ring.append(memory_ring.init_memory(1, 4, K, H), KEYS, V), "must be"),
])  # fmt: skip
def test_bad_input_is_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
