"""Linformer computes equation 7 of its paper, and softmax attention when nothing is mixed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.linformer import linformer
from tests.ops import reference

B, T, S, L, C, N, K, H = 2, 11, 13, 17, 5, 4, 2, 8


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)
SHAPES = {"shared": (L, C), "per key head": (K, L, C), "per query head": (N, L, C)}
LENGTHS = jnp.array([0, 9])


def formula(q, k, v, e, f, seen=None):
    """softmax(q (E k)^T / sqrt(H)) F v in float64, one head at a time."""
    q, k, v, e, f = (np.asarray(x, np.float64) for x in (q, k, v, e, f))
    out, weights = np.zeros(q.shape), np.zeros((*q.shape[:1], N, q.shape[1], k.shape[1]))
    for b in range(B):
        for n in range(N):
            en, fn = (x if x.ndim == 2 else x[n * len(x) // N] for x in (e, f))
            keep = np.ones((k.shape[1], 1)) if seen is None else np.asarray(seen[b])[:, None]
            en, fn = en[: k.shape[1]] * keep, fn[: k.shape[1]] * keep
            logits = q[b, :, n] @ (en.T @ k[b, :, n * K // N]).T / np.sqrt(H)
            p = np.exp(logits - logits.max(-1, keepdims=True))
            weights[b, n] = p / p.sum(-1, keepdims=True) @ fn.T
            out[b, :, n] = weights[b, n] @ v[b, :, n * K // N]
    return out, weights


@pytest.mark.parametrize("keys", SHAPES)
@pytest.mark.parametrize("values", SHAPES)
def test_values_and_weights_are_the_formula(keys, values):
    e, f = rand(3, *SHAPES[keys]), rand(4, *SHAPES[values])
    run = jax.jit(lambda *x: linformer(*x, keys_NLC=e, values_NLC=f, return_weights=True))
    for got, want in zip(run(Q, KEYS, V), formula(Q, KEYS, V, e, f), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_padding_is_zeroed_before_it_is_mixed():
    e = rand(3, L, C)
    seen = jnp.arange(S) < LENGTHS[:, None]
    out, weights = linformer(
        Q, KEYS, V, keys_NLC=e, mask=masks.lengths(LENGTHS), return_weights=True
    )
    for got, want in zip((out, weights), formula(Q, KEYS, V, e, e, seen), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert (np.asarray(out[0]) == 0).all()
    alone = linformer(Q[1:], KEYS[1:, :9], V[1:, :9], keys_NLC=e)
    np.testing.assert_allclose(out[1:], alone, rtol=1e-5, atol=1e-5)


def test_without_mixing_it_is_softmax_attention():
    want, _ = reference.attention(Q, KEYS, V)
    np.testing.assert_allclose(linformer(Q, KEYS, V, keys_NLC=jnp.eye(S)), want, atol=2e-6)


def test_gradients_are_those_of_the_formula():
    e, f, to_out = rand(3, N, L, C), rand(4, L, C), rand(5, B, T, N, H)
    mask = masks.lengths(LENGTHS)

    def loss(q, k, v, e, f):
        return (linformer(q, k, v, keys_NLC=e, values_NLC=f, mask=mask) * to_out).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(Q, KEYS, V, e, f)
    given = [np.asarray(x, np.float64) for x in (Q, KEYS, V, e, f)]
    seen = np.arange(S) < np.asarray(LENGTHS)[:, None]
    step = 1e-5
    for i, (x, gradient) in enumerate(zip(given, gradients, strict=True)):
        direction = np.asarray(rand(10 + i, *x.shape), np.float64)
        ends = []
        for sign in (1, -1):
            moved = [*given[:i], x + sign * step * direction, *given[i + 1 :]]
            ends.append((formula(*moved, seen)[0] * np.asarray(to_out)).sum())
        want = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), want, rtol=1e-4)


@pytest.mark.slow
def test_nothing_to_attend_to_is_zero_with_zero_gradients():
    hidden = masks.lengths(jnp.zeros(B, jnp.int32))
    nobody = masks.explicit(jnp.zeros((B, 1, T, 1), bool))
    for mask in (hidden, nobody):

        def loss(*x, mask=mask):
            out = linformer(*x[:3], keys_NLC=x[3], mask=mask)
            return (out + 1.0).prod(), out

        for array in jax.tree.leaves(
            jax.grad(loss, (0, 1, 2, 3), has_aux=True)(Q, KEYS, V, rand(3, L, C))
        ):
            assert (np.asarray(array) == 0).all()


def test_bfloat16_costs_only_its_own_rounding():
    e = rand(3, L, C)
    q, k, v = (x.astype(jnp.bfloat16) for x in (Q, KEYS, V))
    out = linformer(q, k, v, keys_NLC=e)
    assert out.dtype == jnp.bfloat16
    want, _ = formula(*(x.astype(jnp.float32) for x in (q, k, v)), e, e)
    np.testing.assert_allclose(out.astype(jnp.float32), want, atol=0.05 * np.abs(want).max())


def test_what_it_cannot_do_is_told():
    e = rand(3, L, C)
    for match, change in {
        "cannot be causal": {"mask": masks.causal()},
        "packed": {"mask": masks.segments(jnp.ones((B, T), int), jnp.ones((B, S), int))},
        "window": {"mask": masks.window(3)},
        "explicit mask of shape": {"mask": masks.explicit(jnp.ones((T, S), bool))},
        "bias": {"bias": jnp.zeros((T, S))},
        "at most 7": {"keys_NLC": e[:7]},
        "for all heads": {"keys_NLC": rand(3, 3, L, C)},
        "mixtures": {"values_NLC": e[:, :3]},
    }.items():
        with pytest.raises(ValueError, match=match):
            linformer(Q, KEYS, V, **{"keys_NLC": e} | change)


def test_transformations_change_nothing():
    e = rand(3, L, C)
    want = linformer(Q, KEYS, V, keys_NLC=e)
    mapped = jax.vmap(lambda *x: linformer(*(y[None] for y in x), keys_NLC=e)[0])(Q, KEYS, V)
    np.testing.assert_allclose(mapped, want, atol=1e-5)
