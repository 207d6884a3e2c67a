"""Performer computes the formula of its paper, whatever the chunks, masks and states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.performer import init_state, orthogonal_features, performer
from tests.ops import reference

B, T, S, N, K, H, M = 2, 11, 13, 4, 2, 8, 16


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, KEYS, V = rand(0, B, S, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)
W_KEY = jax.random.key(3)
W = orthogonal_features(W_KEY, M, H)
IDS = jnp.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 4 + [3] * 9])
CROSS = masks.segments(
    jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [7] * 2 + [1] * 9]),
    jnp.array([[1, 2] * 6 + [0], [1] * 5 + [7] * 8]),  # scattered, and in another order
)
SELF = {
    "none": None,
    "causal": masks.causal(),
    "padding": masks.lengths(jnp.array([0, 9])),
    "causal padding": masks.lengths(jnp.array([0, 9])) & masks.causal(),
    "packed": masks.segments(IDS),
    "causal packed": masks.segments(IDS) & masks.causal(),
    "hidden": masks.explicit(jnp.arange(S)[None, None, None] % 3 > 0) & masks.causal(),
}
OTHER = {
    "longer": None,
    "offset": masks.causal(2),
    "traced offset": masks.causal(jnp.int32(2)),
    "before all keys": masks.causal(-4),
    "cross": CROSS,
    "causal cross": CROSS & masks.causal(1),
}
MASKS = SELF | OTHER


def queries(name):
    return Q if name in SELF else Q[:, :T]


def formula(q, k, v, allowed, kernel="softmax", w=W, epsilon=1e-3):
    """Equations 3 to 5 (softmax) or the ReLU kernel in float64; returns (out, weights)."""
    q, k, v, w = (np.asarray(x, np.float64) for x in (q, k, v, w))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))

    def phi(x):
        if kernel == "relu":
            return np.maximum(x @ w.T, 0) + epsilon
        x = x * H**-0.25
        return np.exp(x @ w.T - 0.5 * (x**2).sum(-1, keepdims=True))

    a = np.einsum("btnm,bsnm->bnts", phi(q), phi(k))
    a = np.where(allowed, a, 0.0)
    total = a.sum(-1, keepdims=True)
    a = a / np.where(total == 0, 1, total)
    return np.einsum("bnts,bsnh->btnh", a, v), a


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kernel, chunk", [("softmax", 4), ("relu", 256)])
def test_values_and_weights_are_the_formula(name, kernel, chunk):
    q, mask = queries(name), MASKS[name]
    run = jax.jit(
        lambda q, k, v: performer(
            q, k, v, features_MH=W, mask=mask, kernel=kernel, chunk=chunk, return_weights=True
        )
    )
    out, weights = run(q, KEYS, V)
    allowed = True if mask is None else masks.materialise(mask, q.shape[1], S)
    want, want_weights = formula(q, KEYS, V, allowed, kernel)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(weights, want_weights, atol=1e-5)
    empty = want_weights.sum(-1) == 0
    assert (np.moveaxis(np.asarray(out), 2, 1)[empty] == 0).all()


def test_the_kernel_is_unbiased():
    x, y = 0.5 * rand(4, H), 0.5 * rand(5, H)
    draws = jax.vmap(lambda key: orthogonal_features(key, M, H))(jax.random.split(W_KEY, 4000))
    w = np.asarray(draws, np.float64)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    estimates = np.exp(w @ (x + y) - 0.5 * (x @ x + y @ y)).mean(axis=1)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - np.exp(x @ y)) < 4 * error < 0.15 * np.exp(x @ y)


def test_features_of_a_block_are_orthogonal():
    w = np.asarray(orthogonal_features(W_KEY, 19, H))
    assert w.shape == (19, H)
    for start in (0, H, 2 * H):
        block = w[start : start + H]
        products = block @ block.T
        np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-5)
    norms = np.linalg.norm(orthogonal_features(W_KEY, 19, H, regularised=True), axis=1)
    np.testing.assert_allclose(norms, H**0.5, rtol=1e-5)
    many = np.asarray(orthogonal_features(W_KEY, 4000, H))  # the norms are those of Gaussian rows
    assert abs(np.square(many).sum(axis=1).mean() - H) < 4 * (2 * H / 4000) ** 0.5


@pytest.mark.slow
def test_the_error_to_softmax_falls_as_the_root_of_features():
    q, k, v = (0.5 * rand(i, 1, 12, 1, H) for i in range(3))
    exact, _ = reference.attention(q, k, v)
    numbers, errors = (16, 64, 256, 1024), []
    for m in numbers:
        draws = jax.vmap(lambda key, m=m: orthogonal_features(key, m, H))
        run = jax.jit(jax.vmap(lambda w: performer(q, k, v, features_MH=w)))
        out = run(draws(jax.random.split(W_KEY, 40)))
        errors.append(float(np.sqrt(np.square(out - exact).mean())))
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.3, errors


def test_gradients_are_those_of_the_formula():
    name, to_out = "causal cross", rand(6, B, T, N, H)
    q, mask = queries(name), MASKS[name]
    allowed = masks.materialise(mask, T, S)

    def loss(*x):
        return (performer(*x[:3], features_MH=x[3], mask=mask, chunk=4) * to_out).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, KEYS, V, W)
    x = [np.asarray(x, np.float64) for x in (q, KEYS, V, W)]
    for i, gradient in enumerate(gradients):
        direction = np.asarray(rand(10 + i, *x[i].shape), np.float64)
        ends = []
        for step in (1e-5, -1e-5):
            q_, k_, v_, w_ = (*x[:i], x[i] + step * direction, *x[i + 1 :])
            out, _ = formula(q_, k_, v_, allowed, w=w_)
            ends.append((out * np.asarray(to_out)).sum())
        want = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), want, rtol=1e-4)


@pytest.mark.slow
def test_far_keys_take_nothing_from_the_others():
    """Exponents that differ by hundreds: a running top keeps what a later one would crush."""
    k = KEYS.at[:, 8:].multiply(40.0)
    out = performer(Q, k, V, features_MH=W, mask=masks.causal(), chunk=4)
    alone = performer(*(x[:, :8] for x in (Q, k, V)), features_MH=W, mask=masks.causal())
    np.testing.assert_allclose(out[:, :8], alone, atol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.slow
def test_an_epsilon_is_part_of_each_feature():
    def phi(x):
        x = np.asarray(x, np.float64) * H**-0.25
        return np.exp(x @ np.asarray(W, np.float64).T - 0.5 * (x**2).sum(-1, keepdims=True)) + 0.1

    weights = performer(Q, KEYS, V, features_MH=W, epsilon=0.1, return_weights=True)[1]
    a = np.einsum("btnm,bsnm->bnts", phi(Q), np.repeat(phi(KEYS), N // K, axis=2))
    np.testing.assert_allclose(weights, a / a.sum(-1, keepdims=True), atol=1e-6)


def test_tokens_one_by_one_equal_the_whole():
    mask = masks.causal()
    whole, end = performer(Q, KEYS, V, features_MH=W, mask=mask, chunk=4, return_state=True)
    step = jax.jit(
        lambda q, k, v, s: performer(q, k, v, features_MH=W, mask=mask, state=s, return_state=True)
    )
    state = init_state(B, K, M, H)
    for t in range(S):
        out, state = step(Q[:, t : t + 1], KEYS[:, t : t + 1], V[:, t : t + 1], state)
        np.testing.assert_allclose(out, whole[:, t : t + 1], atol=1e-5)
    for a, b in zip(state, end, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_told():
    for match, change in {
        "window": {"mask": masks.window(3)},
        "either": {"mask": masks.causal() | masks.sinks(1)},
        "explicit mask of shape": {"mask": masks.explicit(jnp.ones((S, S), bool))},
        "two masks of segments": {"mask": masks.segments(IDS) & masks.segments(IDS)},
        "bias": {"bias": jnp.zeros((S, S))},
        "not one of softmax, relu": {"kernel": "cosine"},
        "the head width": {"features_MH": W[:, :3]},
        "chunk": {"chunk": 0},
        "a state needs": {"return_state": True},
    }.items():
        with pytest.raises(ValueError, match=match):
            performer(Q, KEYS, V, **{"features_MH": W} | change)
    with pytest.raises(ValueError, match="do not divide"):
        performer(Q[:, :, :3], KEYS, V, features_MH=W)
    with pytest.raises(ValueError, match="num_features"):
        orthogonal_features(W_KEY, 0, H)
