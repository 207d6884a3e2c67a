"""What sparse attentions are compared with: a dense mask, in float64, and dense autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks
from jaxformer.ops.attention import attention
from tests.ops import reference
from tests.ops.jaxprs import equations


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def inputs(T, S=None, *, B=2, N=4, K=2, H=8):
    S = T if S is None else S
    return rand(0, B, T, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)


def mask_of(name, T, S=None, *, offset=0):
    """A mask of batch 2 by its name; "lengths" and "segments" hide all from some queries."""
    S = T if S is None else S
    ids = jnp.array([[1] * (S // 3) + [2] * (S // 3) + [0] * (S - 2 * (S // 3)), [1] * S])
    return {
        "none": None,
        "causal": masks.causal(offset),
        "segments": masks.segments(ids[:, offset : offset + T], ids) & masks.causal(offset),
        "lengths": masks.lengths(jnp.array([0, S - 3])),
        "explicit": masks.explicit(jax.random.bernoulli(jax.random.key(9), 0.5, (2, 1, T, S))),
    }[name]


def check(f, arrays, allowed, *, soft_cap=None, bias=None, counts=None, tolerance=1e-5):
    """Compares f(q, k, v[, bias], return_weights=True), and gradients of both results, with the
    dense form; `counts` says how often a query sees a key, if not once."""
    q, k, v = arrays
    (B, T, N, _), S = q.shape, k.shape[1]
    allowed = np.broadcast_to(np.asarray(allowed), (B, N, T, S))
    more = np.zeros(allowed.shape) if counts is None else np.log(np.maximum(counts, 1))
    dense_bias = more if bias is None else more + np.asarray(bias)
    given = arrays if bias is None else (*arrays, bias)
    to_out, to_weights = rand(6, *q.shape), rand(7, B, N, T, S)

    def loss(*x):
        out, weights = f(*x)
        return (out * to_out).sum() + (weights * to_weights).sum(), (out, weights)

    def dense(q, k, v, *added):
        out = attention(
            q, k, v, mask=masks.explicit(jnp.asarray(allowed)), backend="dense", soft_cap=soft_cap,
            bias=jnp.asarray(more, jnp.float32) + sum(added), return_weights=True,
        )  # fmt: skip
        return (out[0] * to_out).sum() + (out[1] * to_weights).sum()

    every = tuple(range(len(given)))
    (_, (out, weights)), got = jax.jit(jax.value_and_grad(loss, every, has_aux=True))(*given)
    want, want_weights = reference.attention(q, k, v, allowed, dense_bias, soft_cap=soft_cap)
    np.testing.assert_allclose(out, want, atol=tolerance)
    np.testing.assert_allclose(weights, want_weights, atol=tolerance)
    seen = np.moveaxis(allowed.any(axis=-1), 1, 2)
    assert (np.asarray(out)[~seen] == 0).all()
    for name, a, b in zip("qkvb", got, jax.jit(jax.grad(dense, every))(*given), strict=False):
        np.testing.assert_allclose(a, b, atol=2 * tolerance, rtol=1e-4, err_msg=name)


def largest_of(f, length, *, N=2, H=8):
    """The most elements of any array in the gradient of f at this length, and in all it calls."""
    q = jax.ShapeDtypeStruct((1, length, N, H), jnp.float32)
    step = jax.grad(lambda q, k, v: (f(q, k, v) ** 2).sum(), (0, 1, 2))
    made = (v.aval for eqn in equations(jax.make_jaxpr(step)(q, q, q).jaxpr) for v in eqn.outvars)
    return max(aval.size for aval in made if hasattr(aval, "size"))
