"""The CPU's attention is dense attention: value, gradients, empty rows, every mask."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.blocked import blocked

B, T, S, N, K, H = 2, 24, 24, 4, 2, 8
SEGMENTS_BT = jnp.repeat(jnp.array([[1, 2, 0], [3, 3, 1]]), 8, axis=1)
CASES = {
    "none": (None, 8),
    "causal": (masks.causal(), 8),
    "one block": (masks.causal(), 64),
    "window": (masks.window(3), 8),
    "sees nothing": (masks.causal(offset=-10), 8),
    "segments": (masks.causal() & masks.segments(SEGMENTS_BT), 8),
    "per head": (masks.explicit(jax.random.bernoulli(jax.random.key(9), 0.5, (B, N, T, S))), 8),
}


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def inputs(dtype=jnp.float32, heads=K):
    q, g = rand(0, B, T, N, H), rand(3, B, T, N, H)
    k, v = rand(1, B, S, heads, H), rand(2, B, S, heads, H)
    return [x.astype(dtype) for x in (q, k, v, g)]


def float64(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def reference(q, k, v, g, allowed, scale):
    """Attention and its gradients, head by head, in numpy float64."""
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (q, q, k, v))
    for b, n in np.ndindex(q.shape[0], q.shape[2]):
        kv = n // (q.shape[2] // k.shape[2])
        keys, values = k[b, :, kv], v[b, :, kv]
        logits = np.where(allowed[b, n], scale * q[b, :, n] @ keys.T, -np.inf)
        top = logits.max(-1, keepdims=True)
        p = np.exp(logits - np.where(np.isinf(top), 0, top))
        p = p / np.where(p.sum(-1, keepdims=True) == 0, 1, p.sum(-1, keepdims=True))
        out[b, :, n] = p @ values
        d_p = g[b, :, n] @ values.T
        d_logits = scale * p * (d_p - (p * d_p).sum(-1, keepdims=True))
        d_q[b, :, n] = d_logits @ keys
        d_k[b, :, kv] += d_logits.T @ q[b, :, n]
        d_v[b, :, kv] += p.T @ g[b, :, n]
    return out, d_q, d_k, d_v


def outcome(mask, query_chunk, q, k, v, g, scale=0.4):
    out, pull = jax.vjp(
        lambda q, k, v: blocked(q, k, v, mask=mask, scale=scale, query_chunk=query_chunk), q, k, v
    )
    return out, *pull(g)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_against_float64(case, dtype):
    mask, query_chunk = CASES[case]
    args = inputs(dtype)
    allowed = np.ones((B, N, T, S), bool)
    if mask is not None:
        allowed = np.broadcast_to(masks.materialise(mask, T, S), allowed.shape)
    want = reference(*map(float64, args), allowed, 0.4)
    got = jax.jit(lambda mask, *args: outcome(mask, query_chunk, *args))(mask, *args)
    for have, exact in zip(got, want):
        assert have.dtype == dtype
        # bf16 rounds q, p and the gradient of the logits to 8 bits each.
        bound = 1e-5 if dtype == jnp.float32 else 0.03 * np.abs(exact).max()
        np.testing.assert_allclose(float64(have), exact, rtol=0, atol=bound)


def test_a_row_that_sees_nothing_is_exactly_zero():
    out, d_q, d_k, d_v = outcome(masks.causal(offset=-10), 8, *inputs())
    assert not out[:, :10].any() and not d_q[:, :10].any()
    assert not d_k[:, 14:].any() and not d_v[:, 14:].any()
    assert out[:, 10:].any()


@pytest.mark.slow
def test_vmap_and_remat_agree_with_the_plain_call():
    q, k, v, g = inputs(heads=N)
    plain = outcome(masks.causal(), 8, q, k, v, g)

    def loss(q, k, v):
        return jnp.vdot(blocked(q, k, v, mask=masks.causal(), scale=0.4, query_chunk=8), g)

    remat = jax.grad(jax.checkpoint(loss), (0, 1, 2))(q, k, v)
    many = jax.vmap(lambda *x: outcome(masks.causal(), 8, *x))(*(x[None] for x in (q, k, v, g)))
    for one, other in zip(plain[1:], remat):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(plain, many):
        np.testing.assert_allclose(one, other[0], atol=1e-6)


def test_bf16_matmuls_stay_bf16_on_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("about XLA's CPU compiler")
    args = [jnp.ones((2, 32, 2, 32), jnp.bfloat16)] * 4
    step = jax.jit(lambda *args: outcome(masks.causal(), 16, *args))
    program = step.lower(*args).compile().as_text()
    dtypes = dict(re.findall(r"%([\w.-]+) = (\w+)\[", program))
    operands = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)\)", program)
    assert len(operands) == 2 * 6
    assert {dtypes[name] for pair in operands for name in pair} == {"bf16"}
