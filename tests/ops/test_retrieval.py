"""Search against sorting, and the neighbours' language model against its formula, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.ops import retrieval

RNG = np.random.default_rng(0)


def brute_force(q_QD, k_SD, neighbours):
    """Squared distances in float64, of all keys, sorted; inf where there are no more."""
    q, k = q_QD.astype(np.float64), k_SD.astype(np.float64)
    all_QS = np.square(q[:, None] - k[None]).sum(-1)
    order_QK = np.argsort(all_QS, axis=1, kind="stable")[:, :neighbours]
    found_QK = np.take_along_axis(all_QS, order_QK, axis=1)
    missing = neighbours - found_QK.shape[1]
    return all_QS, np.pad(found_QK, ((0, 0), (0, missing)), constant_values=np.inf)


def search(q_QD, k_SD, neighbours, block):
    found = retrieval.none_yet(len(q_QD), neighbours)
    for start in range(0, len(k_SD), block):
        part_SD = k_SD[start : start + block]
        padded_SD = np.full((block, k_SD.shape[1]), 7, k_SD.dtype)  # padding that would be found
        padded_SD[: len(part_SD)] = part_SD
        found = retrieval.nearer(found, q_QD, padded_SD, start, len(part_SD))
    return tuple(map(np.asarray, found))


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([1, 3, 520]), st.integers(1, 90), st.sampled_from([1, 4, 40]),
    st.sampled_from([7, 32]), st.sampled_from(["float16", "float32"]),
)  # fmt: skip
def test_blocks_give_what_sorting_gives(queries, keys, neighbours, block, dtype):
    """Whatever the block's length; fewer keys than neighbours too."""
    rng = np.random.default_rng(keys)
    q_QD = rng.standard_normal((queries, 6)).astype(np.float32)
    k_SD = rng.standard_normal((keys, 6)).astype(dtype)
    distance_QK, index_QK = search(q_QD, k_SD, neighbours, block)
    all_QS, want_QK = brute_force(q_QD, k_SD, neighbours)
    np.testing.assert_allclose(distance_QK, want_QK, rtol=1e-5, atol=1e-5)
    there_QK = np.isfinite(want_QK)
    at_QK = np.take_along_axis(all_QS, index_QK, axis=1)
    np.testing.assert_allclose(at_QK[there_QK], want_QK[there_QK], rtol=1e-5, atol=1e-5)
    assert (index_QK[~there_QK] == 0).all()
    for row, real in zip(index_QK, there_QK):
        assert len(set(row[real])) == real.sum()  # no key twice


def test_long_blocks():
    """Beyond the length that is sorted as it is."""
    q_QD, k_SD = RNG.standard_normal((3, 8)), RNG.standard_normal((9000, 8))
    q_QD, k_SD = q_QD.astype(np.float32), k_SD.astype(np.float32)
    distance_QK, index_QK = search(q_QD, k_SD, 20, 4096)
    all_QS, want_QK = brute_force(q_QD, k_SD, 20)
    np.testing.assert_allclose(distance_QK, want_QK, rtol=1e-5)
    assert (index_QK == np.argsort(all_QS, axis=1)[:, :20]).all()


def test_an_equal_key_is_at_distance_zero_and_the_first_of_equals_is_kept():
    k_SD = np.repeat(RNG.standard_normal((5, 4)), 3, axis=0).astype(np.float32)
    distance_QK, index_QK = search(k_SD[::3], k_SD, 2, 6)
    assert (distance_QK >= 0).all() and distance_QK.max() < 1e-5
    np.testing.assert_array_equal(index_QK, np.arange(0, 15, 3)[:, None] + [0, 1])


def test_not_all_distances_are_held():
    """The most that exists at one time are the distances of a chunk of the queries."""
    Q, S, D, K = 4096, 2048, 8, 4
    compiled = retrieval.nearer.lower(
        retrieval.none_yet(Q, K), jnp.zeros((Q, D)), jnp.zeros((S, D)), 0, S
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * Q * S * 4


def by_formula(distances_QK, values_QK, V, temperature):
    weight_QK = np.exp(-distances_QK.astype(np.float64) / temperature)
    p_QV = np.zeros((len(distances_QK), V))
    for q, k in np.ndindex(*values_QK.shape):
        p_QV[q, values_QK[q, k]] += weight_QK[q, k]
    return p_QV / p_QV.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_neighbours_language_model(temperature):
    distances_QK = RNG.uniform(0, 9, (4, 12)).astype(np.float32)
    distances_QK[2, 5:] = np.inf  # fewer neighbours
    values_QK = RNG.integers(0, 5, (4, 12))
    want_QV = by_formula(distances_QK, values_QK, 7, temperature)
    found_QV = retrieval.knn_log_probs(distances_QK, values_QK, 7, temperature=temperature)
    np.testing.assert_allclose(np.exp(found_QV), want_QV, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.exp(found_QV).sum(axis=1), 1, rtol=1e-6)
    assert np.isneginf(found_QV[:, 5:]).all()
    for target in range(7):
        one_Q = retrieval.knn_log_prob_of(
            distances_QK, values_QK, np.full(4, target), temperature=temperature
        )
        np.testing.assert_allclose(np.exp(one_Q), want_QV[:, target], rtol=1e-5, atol=1e-7)


def test_far_neighbours_do_not_underflow():
    distances_QK = np.array([[5000.0, 5001.0]], np.float32)
    found_QV = retrieval.knn_log_probs(distances_QK, np.array([[0, 1]]), 2)
    np.testing.assert_allclose(np.exp(found_QV), [[0.7310586, 0.2689414]], rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_probabilities_are_mixed(weight):
    lm_QV = jax.nn.log_softmax(RNG.standard_normal((3, 7)).astype(np.float32))
    distances_QK, values_QK = RNG.uniform(0, 9, (3, 5)), RNG.integers(0, 7, (3, 5))
    knn_QV = retrieval.knn_log_probs(distances_QK, values_QK, 7)
    mixed_QV = np.exp(retrieval.interpolate(lm_QV, knn_QV, weight))
    want_QV = weight * by_formula(distances_QK, values_QK, 7, 1.0)
    want_QV += (1 - weight) * np.exp(np.asarray(lm_QV, np.float64))
    np.testing.assert_allclose(mixed_QV, want_QV, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(mixed_QV.sum(axis=1), 1, rtol=1e-6)
    if weight == 0:
        np.testing.assert_array_equal(retrieval.interpolate(lm_QV, knn_QV, 0.0), lm_QV)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: retrieval.none_yet(2, 0), "neighbours=0"),
        (lambda: retrieval.interpolate(0.0, 0.0, 1.5), "from 0 to 1"),
        (lambda: retrieval.knn_log_probs(np.ones((1, 1)), np.ones((1, 1), int), 3, temperature=0),
         "temperature=0"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
