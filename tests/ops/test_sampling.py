"""Filters against the published ones (transformers), draws against the probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import sampling

B, V = 5, 40


@pytest.fixture(scope="module")
def logits():
    return 3 * np.random.default_rng(0).normal(size=(B, V)).astype(np.float32)


def test_filters_equal_transformers(logits):
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("transformers.generation.logits_process")
    cases = [
        (sampling.top_k, published.TopKLogitsWarper, (1, 7, V)),
        (sampling.top_p, published.TopPLogitsWarper, (0.1, 0.5, 0.95)),
        (sampling.min_p, published.MinPLogitsWarper, (0.01, 0.3, 0.99)),
    ]
    for ours, theirs, values in cases:
        for value in values:
            want = theirs(value)(None, torch.tensor(logits)).numpy()
            np.testing.assert_array_equal(ours(jnp.asarray(logits), value), want)
            # A traced option, one per row, keeps the same tokens.
            rows = jnp.full(B, value)
            np.testing.assert_array_equal(ours(jnp.asarray(logits), rows), want)


def test_options_that_are_off_change_nothing(logits):
    x = jnp.asarray(logits)
    for off in (
        sampling.top_k(x, 0), sampling.top_k(x, jnp.asarray(0)), sampling.top_p(x, 1.0),
        sampling.top_p(x, jnp.asarray(1.0)), sampling.min_p(x, 0.0),
        sampling.min_p(x, jnp.asarray(0.0)), sampling.top_k(x, V + 3),
    ):  # fmt: skip
        np.testing.assert_array_equal(off, logits)


def test_the_likeliest_token_always_stays(logits):
    x, best = jnp.asarray(logits), logits.argmax(-1)
    for filtered in (sampling.top_k(x, 1), sampling.top_p(x, 0.0), sampling.min_p(x, 1.0)):
        assert (np.isfinite(filtered).sum(-1) == 1).all()
        np.testing.assert_array_equal(np.argmax(filtered, -1), best)


def draws(logits_V, count=20_000, **options):
    rows = jnp.broadcast_to(jnp.asarray(logits_V), (count, len(logits_V)))
    tokens = jax.jit(lambda key, rows: sampling.sample(key, rows, **options))(
        jax.random.key(0), rows
    )
    return np.bincount(tokens, minlength=len(logits_V)) / count


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(temperature=1.0), [0, 1, 2, 3, 4]),
        (dict(temperature=2.0, top_k=3), [0, 1, 2]),
        (dict(temperature=0.5, top_p=0.9), [0, 1]),
        (dict(temperature=1.0, min_p=0.2), [0, 1, 2]),
        (dict(temperature=1.0, top_k=4, top_p=0.7), [0, 1]),
    ],
)
def test_draws_have_the_probabilities_of_what_is_kept(options, kept):
    probability = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    want = probability ** (1 / options["temperature"])
    want[[i for i in range(5) if i not in kept]] = 0
    got = draws(np.log(probability), **options)
    # Four standard deviations of a frequency out of 20,000.
    np.testing.assert_allclose(got, want / want.sum(), atol=4 * 0.5 / np.sqrt(20_000))
    assert (got[want == 0] == 0).all()


def test_temperature_zero_is_greedy_also_where_traced_per_row(logits):
    best = logits.argmax(-1)
    key = jax.random.key(1)
    np.testing.assert_array_equal(sampling.sample(key, logits, temperature=0), best)
    temperature = jnp.array([0, 1e-30, 0, 1e-6, 0])
    np.testing.assert_array_equal(sampling.sample(key, logits, temperature=temperature), best)


def test_a_row_depends_on_its_own_key_and_logits_only(logits):
    keys = jax.random.split(jax.random.key(0), B)
    for options in (dict(top_k=8), dict(top_p=0.9), dict(min_p=0.01)):
        together = sampling.sample(keys, jnp.asarray(logits), **options)
        for row in range(B):
            alone = sampling.sample(
                keys[row : row + 1], jnp.asarray(logits[row : row + 1]), **options
            )
            assert alone[0] == together[row]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30])
def test_hostile_logits_never_leave_the_vocabulary(temperature):
    rows = np.zeros((6, 8), np.float32)
    rows[0] = np.nan
    rows[1] = -np.inf
    rows[2, 3] = np.inf
    rows[3, :7] = -np.inf
    rows[4, 2] = np.nan
    rows[5] = [3e38, -3e38, 1e38, 0, 0, 0, 0, 0]
    for options in ({}, dict(top_k=2), dict(top_p=0.5), dict(min_p=0.1)):
        for seed in range(3):
            tokens = np.asarray(
                sampling.sample(
                    jax.random.key(seed), jnp.asarray(rows), temperature=temperature, **options
                )
            )
            assert ((tokens >= 0) & (tokens < 8)).all()
            assert tokens[[0, 1]].tolist() == [0, 0]
            assert tokens[[2, 3, 5]].tolist() == [3, 7, 0] and tokens[4] != 2
