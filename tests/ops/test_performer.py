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
W = orthogonal_features(jax.random.key(3), M, H)
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
@pytest.mark.parametrize("kernel, chunk", [("softmax", 4), ("softmax", 5), ("relu", 256)])
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


def test_the_kernel_is_unbiased_and_its_error_falls_as_the_root_of_features():
    q, k, v = (rand(i, 1, 12, 1, H) for i in range(3))
    exact, _ = reference.attention(q, k, v)
    errors = []
    for num_features in (16, 64, 256, 1024):
        draws = jax.random.split(jax.random.key(9), 40)
        run = jax.jit(
            jax.vmap(
                lambda key, m=num_features: performer(
                    q, k, v, features_MH=orthogonal_features(key, m, H)
                )
            )
        )
        errors.append(float(np.sqrt(np.square(run(draws) - exact).mean())))
    slope = np.polyfit(np.log([16, 64, 256, 1024]), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35, errors


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
