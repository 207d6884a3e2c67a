"""Experts against the sum written out: every token reaches all the experts that it chose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops

X, D, F = 5, 6, 7


def weights(seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = [(2, 9, D), (D, X), (X, D, F), (X, D, F), (X, F, D)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def reference(x, router, gate, up, down, per_token):
    """Every expert for every token, in float64."""
    x, router, gate, up, down = (np.asarray(a, np.float64) for a in (x, router, gate, up, down))
    logits = x @ router
    best = np.sort(np.argsort(-logits, axis=-1)[..., :per_token], axis=-1)
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, best, True, axis=-1)
    shares = np.where(chosen, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    shares /= shares.sum(axis=-1, keepdims=True)
    hidden = np.einsum("btd,xdf->btxf", x, gate)
    hidden = hidden / (1 + np.exp(-hidden)) * np.einsum("btd,xdf->btxf", x, up)
    return np.einsum("btx,btxf,xfd->btd", shares, hidden, down)


@pytest.mark.parametrize("per_token", [1, 2, X])
def test_equals_the_sum_over_the_chosen(per_token):
    given = weights()
    out = jax.jit(ops.experts, static_argnames="per_token")(*given, per_token=per_token)
    expected = reference(*given, per_token)
    assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_token_is_lost_when_all_choose_one_expert():
    x, router, *rest = weights()
    router = jnp.zeros_like(router).at[:, 3].set(100.0)
    x = jnp.abs(x)
    out = ops.experts(x, router, *rest, per_token=1)
    expected = reference(x, router, *rest, 1)
    assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_token_does_not_depend_on_the_others():
    x, *rest = weights()
    alone = ops.experts(x[:1, 4:5], *rest)
    np.testing.assert_allclose(ops.experts(x, *rest)[:1, 4:5], alone, rtol=1e-5, atol=1e-5)


def test_gradients():
    given = weights()

    def loss(*args):
        return jnp.sum(jnp.sin(ops.experts(*args, per_token=2)))

    def plain(x, router, gate, up, down):
        shares, chosen = jax.lax.top_k(x @ router, 2)
        shares = jax.nn.softmax(shares)
        hidden = jax.nn.silu(jnp.einsum("btd,xdf->btxf", x, gate))
        parts = jnp.einsum("btxf,xfd->btxd", hidden * jnp.einsum("btd,xdf->btxf", x, up), down)
        return jnp.sum(
            jnp.sin(
                jnp.sum(shares[..., None] * jnp.take_along_axis(parts, chosen[..., None], 2), 2)
            )
        )

    ours = jax.grad(loss, argnums=range(5))(*given)
    for got, expected in zip(ours, jax.grad(plain, argnums=range(5))(*given), strict=True):
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_bad_input():
    with pytest.raises(ValueError, match="per_token"):
        ops.experts(*weights(), per_token=6)
    with pytest.raises(ValueError, match="activation"):
        ops.experts(*weights(), activation="sillu")
