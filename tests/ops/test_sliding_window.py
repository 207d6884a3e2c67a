"""A sliding window is the dense band, whatever its sides, gaps, sinks, mask and lengths."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks, positions
from jaxformer.ops.attention import attention
from jaxformer.ops.attention.sliding_window import sliding_window
from tests.ops import reference
from tests.ops.sparse_truth import check, inputs, largest_of, mask_of, rand


def band(T, S, *, left, right=0, dilation=1, sinks=0, offset=0):
    far = np.arange(S)[None, :] - np.arange(T)[:, None] - offset
    near = (far >= -left * dilation) & (far <= right * dilation) & (far % dilation == 0)
    return near | (np.arange(S) < sinks)


def allowed_by(name, T, S=None, **window):
    S = T if S is None else S
    mask, seen = mask_of(name, T, S, offset=window.get("offset", 0)), band(T, S, **window)
    return seen if mask is None else seen & np.asarray(masks.materialise(mask, T, S))


# name: (T, S, mask, soft cap, the window); chunks of 8 queries divide none of the lengths.
CASES = {
    "one side": (37, 37, "none", None, {"left": 5}),
    "two sides": (37, 37, "segments", 3.0, {"left": 5, "right": 3}),
    "wider than all": (13, 13, "lengths", None, {"left": 50, "right": 50}),
    "its own key only": (19, 19, "none", None, {"left": 0}),
    "sinks": (37, 37, "segments", None, {"left": 4, "sinks": 3}),
    "sinks, not causal": (37, 37, "explicit", 2.0, {"left": 4, "right": 2, "sinks": 3}),
    "gaps": (37, 37, "segments", None, {"left": 3, "right": 1, "dilation": 3}),
    "gaps and sinks": (23, 23, "explicit", 2.0, {"left": 2, "dilation": 2, "sinks": 3}),
    "beyond the keys": (11, 29, "causal", None, {"left": 6, "offset": 18}),
    "gaps and an offset": (11, 29, "lengths", None, {"left": 2, "dilation": 3, "offset": 9}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_dense_band(case):
    T, S, mask, soft_cap, window = CASES[case]
    f = functools.partial(
        sliding_window, mask=mask_of(mask, T, S, offset=window.get("offset", 0)), **window,
        soft_cap=soft_cap, query_chunk=8, return_weights=True,
    )  # fmt: skip
    check(f, inputs(T, S), allowed_by(mask, T, S, **window), soft_cap=soft_cap)


@pytest.mark.parametrize("dilation", [1, 3])
def test_a_bias_array_gets_its_gradient(dilation):
    T, window = 20, {"left": 2, "right": 2, "dilation": dilation, "sinks": 2}

    def f(q, k, v, bias):
        options = {"bias": bias, "query_chunk": 8, "return_weights": True}
        return sliding_window(q, k, v, **window, **options)

    check(f, inputs(T), band(T, T, **window), bias=rand(3, 1, 4, T, T))


def test_a_bias_by_distance():
    q, k, v = inputs(21)
    bias = positions.alibi(4)
    got = sliding_window(q, k, v, left=3, dilation=2, bias=bias, query_chunk=8)
    dense = bias.block(range(21), range(21))
    want, _ = reference.attention(q, k, v, band(21, 21, left=3, dilation=2), dense)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_learned_sink_is_one_more_logit():
    q, k, v = inputs(15)
    sink = rand(4, 4)

    def ours(q, k, v, sink):
        return sliding_window(q, k, v, left=4, sink_logits_N=sink, query_chunk=8)

    def formula(q, k, v, sink):  # gpt-oss: a column of logits that has no value
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)
        logits = jnp.where(band(15, 15, left=4), logits, -jnp.inf)
        column = jnp.broadcast_to(sink[:, None, None], (2, 4, 15, 1))
        weights = jax.nn.softmax(jnp.concatenate([logits, column], axis=-1))[..., :-1]
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    np.testing.assert_allclose(ours(q, k, v, sink), formula(q, k, v, sink), atol=1e-5)
    got, want = (
        jax.jit(jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), (0, 1, 2, 3)))(q, k, v, sink)
        for f in (ours, formula)
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    _, weights = sliding_window(q, k, v, left=4, sink_logits_N=sink, return_weights=True)
    assert (np.asarray(weights.sum(axis=-1)) < 1).all()


@pytest.mark.parametrize("dilation", [1, 2])
def test_decoding_over_a_cache_gives_the_rows_of_the_whole(dilation):
    q, k, v = inputs(9)
    options = {"left": 2, "dilation": dilation, "sinks": 1, "mask": masks.causal()}
    whole = sliding_window(q, k, v, **options)

    @jax.jit
    def row(t):
        at = jax.lax.dynamic_slice_in_dim(q, t, 1, 1)
        return sliding_window(at, k, v, **options | {"mask": masks.causal(t), "offset": t})

    for t in (0, 4, 8):
        np.testing.assert_allclose(row(t)[:, 0], whole[:, t], atol=1e-5)


def test_half_precision():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(40))
    got = sliding_window(q, k, v, left=7, query_chunk=16)
    want, _ = reference.attention(q, k, v, band(40, 40, left=7))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=2e-2)


def test_dropout_drops_the_same_in_the_backward_pass():
    q, k, v = inputs(24)

    def f(v):
        options = {"dropout_rate": 0.5, "key": jax.random.key(3), "query_chunk": 8}
        return sliding_window(q, k, v, left=5, **options)

    out, back = jax.vjp(f, v)
    np.testing.assert_allclose(jnp.vdot(back(out)[0], v), jnp.vdot(out, out), rtol=1e-4)
    plain = sliding_window(q, k, v, left=5)
    assert 0.1 < float(jnp.abs(out - plain).mean()) < 2.0


@pytest.mark.parametrize("dilation", [1, 4])
def test_no_array_of_queries_by_keys_is_made(dilation):
    def f(q, k, v):
        return sliding_window(q, k, v, left=20, right=20, dilation=dilation, sinks=2)

    assert largest_of(f, 4000) < 4000 * 4000 / 25


def test_it_runs_under_vmap_remat_and_scan():
    q, k, v = inputs(12)

    def f(q, k, v):
        return sliding_window(q, k, v, left=3, query_chunk=4)

    rows = jax.vmap(lambda *x: f(*(y[None] for y in x))[0])(q, k, v)
    np.testing.assert_allclose(rows, f(q, k, v), atol=1e-6)

    def loss(q):
        step = jax.checkpoint(lambda q, _: (f(q, k, v), None))
        return (jax.lax.scan(step, q, None, length=2)[0] ** 2).sum()

    twice = jax.jit(jax.grad(lambda q: (f(f(q, k, v), k, v) ** 2).sum()))(q)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(q), twice, atol=1e-5)


def test_mistakes_are_one_line():
    q, k, v = inputs(8)
    for wrong, words in [
        ({"left": -1}, "left"),
        ({"left": 1, "dilation": 0}, "dilation"),
        ({"left": 1, "dropout_rate": 0.5}, "key"),
        ({"left": 1, "mask": jnp.ones((8, 8), bool)}, "explicit"),
    ]:
        with pytest.raises(ValueError, match=words):
            sliding_window(q, k, v, **wrong)
    with pytest.raises(ValueError, match="want q"):
        sliding_window(q, k[..., :4], v, left=1)


def test_the_whole_line_is_plain_causal_attention():
    q, k, v = inputs(14)
    want = attention(q, k, v, mask=masks.causal())
    np.testing.assert_allclose(sliding_window(q, k, v, left=14), want, atol=1e-5)
