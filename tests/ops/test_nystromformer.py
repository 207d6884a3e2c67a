"""Nystromformer computes the formula of its paper, as the published implementation does."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.nystromformer import nystromformer, pseudo_inverse
from tests.ops import reference

B, T, S, N, K, H = 2, 11, 13, 4, 2, 8


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)
ASKS = np.arange(T) < np.array([[T], [7]])
SEEN = np.arange(S) < np.array([[2], [9]])  # so few that some landmarks have no token
MASK = masks.lengths(jnp.array([2, 9])) & masks.explicit(jnp.asarray(ASKS)[:, None, :, None])


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def means(x, seen, number):
    """Of the tokens that are seen, by parts; those without any token are left out."""
    parts = [p for p in np.split(np.arange(len(x)), cuts(len(x), number)) if seen[p].any()]
    return np.stack([x[p][seen[p]].mean(axis=0) for p in parts])


def cuts(length, number):
    size, longer = divmod(length, number)
    return np.cumsum([size] * (number - longer) + [size + 1] * longer)[:-1]


def inverse(a, iterations):
    z, one = a.T / a.sum(axis=0).max(), np.eye(len(a))
    for _ in range(iterations):
        z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
    return z


def formula(q, k, v, number, iterations=6, asks=None, seen=None):
    """One head at a time, in float64, without the hidden tokens; returns (out, weights)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    asks = np.ones(q.shape[:2], bool) if asks is None else asks
    seen = np.ones(k.shape[:2], bool) if seen is None else seen
    out, weights = np.zeros(q.shape), np.zeros((len(q), q.shape[2], q.shape[1], k.shape[1]))
    for b, n in np.ndindex(len(q), q.shape[2]):
        kv = n * k.shape[2] // q.shape[2]
        qs, ks, vs = q[b, asks[b], n] / H**0.5, k[b, seen[b], kv], v[b, seen[b], kv]
        q_marks = means(q[b, :, n] / H**0.5, asks[b], min(number, q.shape[1]))
        k_marks = means(k[b, :, kv], seen[b], min(number, k.shape[1]))
        middle = softmax(q_marks @ k_marks.T)
        w = softmax(qs @ k_marks.T) @ inverse(middle, iterations) @ softmax(q_marks @ ks.T)
        out[b, asks[b], n] = w @ vs
        weights[b, n][np.ix_(asks[b], seen[b])] = w
    return out, weights


@pytest.mark.parametrize("number", [1, 4, 12])  # 12: more than queries, fewer than keys
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_weights_are_the_formula(number, masked):
    hidden = {"asks": ASKS, "seen": SEEN} if masked else {}
    run = jax.jit(
        lambda *x: nystromformer(
            *x, num_landmarks=number, mask=MASK if masked else None, return_weights=True
        )
    )
    for got, want in zip(run(Q, KEYS, V), formula(Q, KEYS, V, number, **hidden), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_formula():
    to_out = np.asarray(rand(5, B, T, N, H), np.float64)

    def loss(*x):
        return (nystromformer(*x, num_landmarks=4, mask=MASK) * to_out).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(Q, KEYS, V)
    given = [np.asarray(x, np.float64) for x in (Q, KEYS, V)]
    for i, gradient in enumerate(gradients):
        direction = np.asarray(rand(10 + i, *given[i].shape), np.float64)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [*given[:i], given[i] + step * direction, *given[i + 1 :]]
            ends.append((formula(*moved, 4, asks=ASKS, seen=SEEN)[0] * to_out).sum())
        want = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), want, rtol=2e-3)


def test_with_a_landmark_for_each_token_it_is_softmax_attention():
    run = jax.jit(lambda *x: nystromformer(*x, num_landmarks=S, mask=MASK, return_weights=True))
    seen = ASKS[:, None, :, None] & SEEN[:, None, None]
    for got, want in zip(run(Q, KEYS, V), reference.attention(Q, KEYS, V, seen), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.slow
def test_the_error_to_softmax_falls_with_landmarks():
    """On a line as smooth as texts' features are: there the middle matrix is of low rank."""
    smooth = np.cumsum(np.asarray(rand(7, 3, 1, 64, 1, H)), axis=2) / 8
    q, k, v = map(jnp.asarray, smooth)
    exact, _ = reference.attention(q, k, v)
    errors = [
        np.linalg.norm(nystromformer(q, k, v, num_landmarks=m) - exact) / np.linalg.norm(exact)
        for m in (2, 8, 32, 64)
    ]
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors)), errors
    assert errors[2] < 0.1


@pytest.mark.parametrize("start", ["matrix", "global"])
def test_the_iteration_finds_the_inverse(start):
    logits = 3 * jnp.eye(6) + rand(8, B, N, 6, 6)
    a = jax.nn.softmax(logits, axis=-1)
    np.testing.assert_allclose(
        pseudo_inverse(a, 20, start=start) @ a, jnp.broadcast_to(jnp.eye(6), a.shape), atol=1e-3
    )


@pytest.mark.parametrize("length", [5, pytest.param(300, marks=pytest.mark.slow)])  # 300: blocks
def test_the_convolution_is_a_sum_of_shifted_values(length):
    q, k, v = (rand(i, B, length, heads, H) for i, heads in ((0, N), (1, K), (2, K)))
    kernel = rand(9, N, 7)
    with_it = nystromformer(q, k, v, num_landmarks=2, kernel_NW=kernel)
    without = nystromformer(q, k, v, num_landmarks=2)
    padded = np.pad(np.repeat(v, N // K, axis=2), ((0, 0), (3, 3), (0, 0), (0, 0)))
    want = sum(np.asarray(kernel)[:, i, None] * padded[:, i : i + length] for i in range(7))
    np.testing.assert_allclose(with_it - without, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("landmarks, width", [(4, 3), (8, 1), (16, 5)])
def test_it_is_the_published_layer(landmarks, width):
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("transformers.models.nystromformer.modeling_nystromformer")
    config = published.NystromformerConfig(
        hidden_size=N * H, num_attention_heads=N, num_landmarks=landmarks,
        segment_means_seq_len=16, conv_kernel_size=width, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = published.NystromformerSelfAttention(config).double().eval()
    x = np.asarray(rand(11, B, 16, N * H), np.float64)
    with torch.no_grad():
        want = layer(torch.tensor(x))[0].numpy()
        q, k, v = (
            jnp.asarray(part(torch.tensor(x)).numpy().reshape(B, 16, N, H), jnp.float32)
            for part in (layer.query, layer.key, layer.value)
        )
        kernel = jnp.asarray(layer.conv.weight.numpy()[:, 0, :, 0], jnp.float32)
    out = nystromformer(q, k, v, num_landmarks=landmarks, start="global", kernel_NW=kernel)
    np.testing.assert_allclose(out.reshape(want.shape), want, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_do_is_told():
    for match, change in {
        "cannot be causal": {"mask": masks.causal()},
        "packed": {"mask": masks.segments(jnp.ones((B, T), int), jnp.ones((B, S), int))},
        "window": {"mask": masks.window(3)},
        "bias": {"bias": jnp.zeros((T, S))},
        "num_landmarks >= 1": {"num_landmarks": 0},
        "'global' or 'matrix'": {"start": "zero"},
        "an odd width": {"kernel_NW": jnp.ones((N, 4))},
        "as many queries as keys": {"kernel_NW": jnp.ones((N, 3))},
    }.items():
        with pytest.raises(ValueError, match=match):
            nystromformer(Q, KEYS, V, **change)
