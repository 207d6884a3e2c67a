"""Linear attention: three forms that are one function, and that of the papers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.linear_attention import (
    init_state,
    linear_attention,
    retention_log_decay,
)

B, T, S, N, K, H = 2, 11, 13, 4, 2, 8


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, KEYS, V = rand(0, B, S, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)
IDS = jnp.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 4 + [3] * 9])
DECAYS = {
    "none": None,
    "retention": 3 * retention_log_decay(N),
    "of heads": -jnp.exp(rand(3, B, S, N) - 1),
    "of channels": -jnp.exp(rand(4, B, S, N, H) - 1),
}
MASKS = {
    "causal": masks.causal(),
    "packed": masks.segments(IDS) & masks.causal(),
    "padding": masks.lengths(jnp.array([0, 9])) & masks.causal(),
}
OTHER = {
    "open": None,
    "offset": masks.causal(2),
    "traced offset": masks.causal(jnp.int32(2)),
    "beyond the keys": masks.causal(20),
    "cross": masks.segments(IDS[:, :T], IDS[::-1]),
    "causal cross": masks.segments(IDS[:, :T], IDS[::-1]) & masks.causal(1),
}
CASES = [(mask, decay, kernel) for mask in MASKS for decay in DECAYS for kernel in ("identity",)]
CASES += [(mask, "none", "elu") for mask in (*MASKS, *OTHER)]
CASES += [("causal", "of channels", "elu")]
CASES += [(mask, "retention", "identity") for mask in OTHER if mask not in ("open", "cross")]


def weights_by_hand(q, k, allowed, log_decay, kernel, offset):
    """One weight at a time, in float64."""
    q, k = np.asarray(q, np.float64), np.repeat(np.asarray(k, np.float64), N // K, axis=2)
    if kernel == "elu":
        q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    rows, columns = q.shape[1], k.shape[1]
    out = np.zeros((B, N, rows, columns))
    for b, n, t, s in np.argwhere(np.broadcast_to(allowed, out.shape)):
        if log_decay is None:
            fade = 1.0
        elif log_decay.ndim == 1:
            fade = np.exp(float(log_decay[n]) * (t + offset - s))
        else:
            fade = np.exp(np.asarray(log_decay, np.float64)[b, s + 1 : t + 1, n].sum(axis=0))
        out[b, n, t, s] = (q[b, t, n] * k[b, s, n] * fade).sum()
    if kernel == "identity":
        return out * H**-0.5
    total = out.sum(-1, keepdims=True)
    return out / np.where(total == 0, 1, total)


@pytest.mark.parametrize("mask, decay, kernel", CASES, ids=str)
def test_values_and_weights_are_the_formula(mask, decay, kernel):
    q = Q if mask in MASKS else Q[:, :T]
    spec, log_decay = (MASKS | OTHER)[mask], DECAYS[decay]
    offset = {"beyond the keys": 20, "causal cross": 1}.get(mask, 2 if mask in OTHER else 0)

    @functools.partial(jax.jit, static_argnums=3)
    def run(q, k, v, form):
        return linear_attention(
            q, k, v, mask=spec, kernel=kernel, log_decay=log_decay, form=form, chunk=4,
            return_weights=form == "parallel",
        )  # fmt: skip

    allowed = True if spec is None else masks.materialise(spec, q.shape[1], S)
    want_weights = weights_by_hand(q, KEYS, allowed, log_decay, kernel, offset)
    want = np.einsum("bnts,bsnh->btnh", want_weights, np.repeat(V, N // K, axis=2))
    out, weights = run(q, KEYS, V, "parallel")
    np.testing.assert_allclose(weights, want_weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(q, KEYS, V, "chunked"), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("decay", DECAYS)
def test_gradients_of_all_forms_are_those_of_the_parallel_one(decay):
    to_out, gate = rand(5, B, S, N, H), DECAYS[decay]
    given = (Q, KEYS, V) if gate is None else (Q, KEYS, V, gate)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def gradients(form, chunk, *x):
        def loss(q, k, v, *g):
            out = linear_attention(
                q, k, v, mask=MASKS["packed"], kernel="identity", form=form, chunk=chunk,
                log_decay=g[0] if g else None,
            )  # fmt: skip
            return (out * to_out).sum()

        return jax.grad(loss, argnums=tuple(range(len(x))))(*x)

    want = gradients("parallel", 1, *given)
    for form, chunk in (("chunked", 4), ("chunked", 64), ("recurrent", 1)):
        for a, b in zip(gradients(form, chunk, *given), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_strong_decays_are_safe_beside_weak_ones():
    """No exponent is ever positive, and a weak gate after strong ones keeps its digits."""
    gates = jnp.where(jax.random.bernoulli(jax.random.key(6), 0.3, (B, S, N, H)), -300.0, -0.01)
    run = jax.jit(
        functools.partial(linear_attention, mask=masks.causal(), kernel="identity"),
        static_argnames=("form", "chunk"),
    )
    want = weights_by_hand(Q, KEYS, masks.materialise(masks.causal(), S, S), gates, "identity", 0)
    want = np.einsum("bnts,bsnh->btnh", want, np.repeat(V, N // K, axis=2))
    for chunk in (1, 4, 64):
        out = run(Q, KEYS, V, log_decay=gates, chunk=chunk)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    d_gates = jax.grad(lambda g: (run(Q, KEYS, V, log_decay=g) ** 2).sum())(gates * 10)
    assert np.isfinite(d_gates).all()


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["none", "retention", "of channels"])
def test_tokens_one_by_one_equal_the_whole(decay):
    gate = DECAYS[decay]
    whole, end = linear_attention(
        Q, KEYS, V, mask=masks.causal(), log_decay=gate, chunk=4, return_state=True
    )

    @jax.jit
    def step(state, *x):
        log_decay = x[3] if len(x) == 4 else gate
        return linear_attention(
            *x[:3], mask=masks.causal(), log_decay=log_decay, state=state, return_state=True
        )

    state = init_state(B, N, K, H, decayed=gate is not None)
    lines = (Q, KEYS, V, gate) if gate is not None and gate.ndim > 1 else (Q, KEYS, V)
    # A prefill of five tokens, then two at once, then one by one.
    for start, stop in [(0, 5), (5, 7), *((t, t + 1) for t in range(7, S))]:
        out, state = step(state, *(x[:, start:stop] for x in lines))
        np.testing.assert_allclose(out, whole[:, start:stop], rtol=1e-5, atol=1e-5)
    for a, b in zip(state, end, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_mask_may_come_through_jit_as_an_argument():
    mask, gate = MASKS["packed"], DECAYS["of heads"]
    more = {"kernel": "identity", "chunk": 4, "return_state": True}
    fn = functools.partial(linear_attention, **more)
    for log_decay in (None, gate):
        want, _ = fn(Q, KEYS, V, mask=mask, log_decay=log_decay)
        out, _ = jax.jit(fn)(Q, KEYS, V, mask=mask, log_decay=log_decay)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_retention_decays_as_its_paper_says():
    np.testing.assert_allclose(
        np.exp(retention_log_decay(3)), [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128]
    )


def test_what_it_cannot_do_is_told():
    gate = DECAYS["of heads"]
    for match, change in {
        "needs an order": {"log_decay": gate, "mask": None},
        "log_decay must be": {"log_decay": gate[:, :3]},
        "one line": {"log_decay": gate, "mask": masks.causal(1)},
        "window": {"mask": masks.window(3)},
        "bias": {"bias": jnp.zeros((S, S))},
        "not one of elu, identity": {"kernel": "softmax"},
        "not one of chunked": {"form": "dense"},
        "has no state": {"form": "parallel", "return_state": True},
        "the weights of a state": {
            "state": init_state(B, N, K, H, decayed=False), "return_weights": True,
        },
        "a state needs": {"mask": None, "return_state": True},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=match):
            linear_attention(Q, KEYS, V, **{"mask": masks.causal()} | change)
