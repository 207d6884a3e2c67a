"""Every backend computes the formula: values, gradients, empty rows, odd lengths, any mask."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks, positions
from jaxformer.ops.attention import attention
from tests.ops import reference

B, T, S, N, K, H = 2, 11, 13, 4, 2, 8
BACKENDS = ("dense", "chunked")
CHUNKS = {"query_chunk": 4, "key_chunk": 5}  # neither divides its length


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, S, K, H), rand(2, B, S, K, H)
ARRAY = rand(3, 1, N, T, S)
TABLE = rand(4, 8, N)
SEGMENTS = masks.segments(
    jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * T]),
    jnp.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * S]),
)
MASKS = {
    "none": None,
    "causal": masks.causal(2),
    "traced offset": masks.causal(jnp.int32(2)),
    "lengths": masks.lengths(jnp.array([0, 9])) & masks.causal(1),
    "window": masks.window(3, 1, offset=1),
    "prefix": masks.prefix(jnp.array([3, 8])),
    "segments": SEGMENTS & masks.causal(2),
    "explicit": masks.explicit(jax.random.bernoulli(jax.random.key(5), 0.4, (B, N, T, S))),
}


def biases(array, table):
    return {
        "none": None,
        "array": array,
        "row": array[:, :1, :1],
        "alibi": positions.alibi(N, offset=2),
        "t5": positions.t5_relative_bias(table, bidirectional=True, max_distance=9),
    }


# Each mask, bias and cap at least once; not their product, which would take minutes to compile.
CASES = [
    ("none", "t5", 2.0),
    ("causal", "alibi", None),
    ("traced offset", "array", 2.0),
    ("lengths", "row", None),
    ("window", "none", 1.5),
    ("prefix", "none", None),
    ("segments", "none", None),
]


def run(backend, q, k, v, array, table, *, mask, bias, soft_cap, **more):
    return attention(
        q, k, v, mask=MASKS[mask], bias=biases(array, table)[bias], soft_cap=soft_cap,
        backend=backend, return_weights=True, **CHUNKS, **more,
    )  # fmt: skip


@functools.cache
def value_and_gradients(backend, case):
    mask, bias, soft_cap = case
    to_out, to_weights = rand(6, B, T, N, H), rand(7, B, N, T, S)

    def loss(*args):
        out, weights = run(backend, *args, mask=mask, bias=bias, soft_cap=soft_cap)
        return (out * to_out).sum() + (weights * to_weights).sum(), (out, weights)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
    (_, outs), gradients = step(Q, KEYS, V, ARRAY, TABLE)
    return outs, gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_weights_are_the_formula(case, backend):
    (out, weights), _ = value_and_gradients(backend, case)
    mask, bias, soft_cap = case
    allowed = None if mask == "none" else masks.materialise(MASKS[mask], T, S)
    added = biases(ARRAY, TABLE)[bias]
    added = added.block(range(T), range(S)) if hasattr(added, "block") else added
    want, want_weights = reference.attention(Q, KEYS, V, allowed, added, soft_cap=soft_cap)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(weights, want_weights, atol=1e-6)
    sums = np.asarray(weights.sum(axis=-1))
    seen = want_weights.sum(axis=-1) > 0
    np.testing.assert_allclose(sums[seen], 1.0, rtol=1e-6)
    assert (sums[~seen] == 0).all() and (np.moveaxis(out, 2, 1)[~seen] == 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunked_gradients_are_those_of_dense(case):
    _, want = value_and_gradients("dense", case)
    _, got = value_and_gradients("chunked", case)
    for name, a, b in zip(["q", "k", "v", "array", "table"], got, want, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_torch(backend):
    torch = pytest.importorskip("torch")
    to_out = rand(6, B, T, N, H)
    allowed = np.array(masks.materialise(MASKS["explicit"], T, S))
    allowed[..., 0] = True  # torch gives NaN where nothing may be attended to

    def loss(q, k, v, bias):
        mask = masks.explicit(jnp.asarray(allowed))
        out = attention(q, k, v, mask=mask, bias=bias, backend=backend, **CHUNKS)
        return (out * to_out).sum()

    got = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(Q, KEYS, V, ARRAY)
    q, k, v, bias = (
        torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
        for x in (Q, KEYS, V, ARRAY)
    )
    masked = bias.expand(B, N, T, S).masked_fill(~torch.tensor(allowed), -torch.inf)
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=masked, enable_gqa=True
    )
    (out.transpose(1, 2) * torch.tensor(np.asarray(to_out))).sum().backward()
    for a, b in zip(got, (q, k, v, bias), strict=True):
        np.testing.assert_allclose(a, b.grad, atol=1e-5)


EMPTY = {
    "lengths 0": masks.lengths(jnp.zeros(B, jnp.int32)),
    "padding": masks.segments(jnp.zeros((B, T), jnp.int32), jnp.ones((B, S), jnp.int32)),
    "before all keys": masks.causal(-T),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*EMPTY, "bias of -inf"])
def test_nothing_to_attend_to_is_zero_with_zero_gradients(name, backend):
    bias = jnp.full((1, 1, 1, S), -jnp.inf) if name == "bias of -inf" else ARRAY

    def loss(q, k, v, bias):
        out, weights = attention(
            q, k, v, mask=EMPTY.get(name), bias=bias, soft_cap=3.0, backend=backend,
            return_weights=True, **CHUNKS,
        )  # fmt: skip
        return out.sum() + weights.sum(), (out, weights)

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    for array in jax.tree.leaves(step(Q, KEYS, V, bias)):
        assert (np.asarray(array) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["causal", "window", "segments"])
def test_no_gradient_flows_against_the_mask(name, backend):
    allowed = np.broadcast_to(masks.materialise(MASKS[name], T, S), (B, 1, T, S))

    def out(k, v):
        return attention(Q, k, v, mask=MASKS[name], backend=backend, **CHUNKS)

    _, backward = jax.vjp(out, KEYS, V)
    one_query = jax.jit(jax.vmap(lambda t: backward(jnp.zeros((B, T, N, H)).at[:, t].set(1.0))))
    for gradient_TBSKH in one_query(jnp.arange(T)):
        reaches = np.asarray(jnp.abs(gradient_TBSKH).max(axis=(3, 4)))
        np.testing.assert_array_equal(reaches.transpose(1, 0, 2) > 0, allowed[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_surely_masked_are_not_even_read(backend):
    poisoned = V.at[:, 8:].set(jnp.nan)  # 0 * NaN would show
    out = attention(Q, KEYS, poisoned, mask=masks.causal(), backend=backend, **CHUNKS)
    assert np.isfinite(out[:, :4]).all() and np.isnan(out[:, 8:]).any()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_one_scaled_mask_in_both_directions(backend):
    rate, key, n = 0.3, jax.random.key(9), 24
    q, k = rand(0, 1, n, 2, n), rand(1, 1, n, 2, n)
    kwargs = {"mask": masks.causal(), "backend": backend, "query_chunk": 9, "key_chunk": 10}

    @jax.jit
    def dropped(q, k, v):
        return attention(q, k, v, dropout_rate=rate, key=key, **kwargs)

    # With the identity for values the output is the weights, and without dropout the whole ones.
    identity = jnp.broadcast_to(jnp.eye(n)[None, :, None], (1, n, 2, n))
    after = jnp.moveaxis(dropped(q, k, identity), 2, 1)
    _, before = attention(q, k, identity, return_weights=True, **kwargs)
    kept = after > 0
    np.testing.assert_allclose(after, jnp.where(kept, before / (1 - rate), 0.0), atol=1e-6)
    visible = np.tril(np.ones((n, n), bool))
    share = np.asarray(kept)[..., visible].mean()
    assert abs(share - (1 - rate)) < 4 * (rate * (1 - rate) / (2 * visible.sum())) ** 0.5

    def by_hand(q, k, v):
        _, weights = attention(q, k, v, return_weights=True, **kwargs | {"backend": "dense"})
        return jnp.einsum("bnts,bsnh->btnh", jnp.where(kept, weights / (1 - rate), 0.0), v)

    v = rand(2, 1, n, 2, n)
    want = jax.jit(jax.grad(lambda *x: (by_hand(*x) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
    got = jax.jit(jax.grad(lambda *x: (dropped(*x) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    again = attention(q, k, v, dropout_rate=rate, key=jax.random.key(10), **kwargs)
    assert np.abs(again - dropped(q, k, v)).max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_costs_only_its_own_rounding(backend):
    q, k, v = (x.astype(jnp.bfloat16) for x in (Q, KEYS, V))

    def loss(q, k, v):
        out = attention(q, k, v, mask=masks.causal(2), backend=backend, **CHUNKS)
        return (out.astype(jnp.float32) ** 2).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    want, _ = reference.attention(*exact, masks.materialise(masks.causal(2), T, S))
    np.testing.assert_allclose(out.astype(jnp.float32), want, atol=0.02)
    _, want = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*exact)
    for a, b in zip(gradients, want, strict=True):
        a = np.asarray(a.astype(jnp.float32))
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_transformations_change_nothing(backend):
    fn = functools.partial(attention, mask=masks.causal(2), backend=backend, **CHUNKS)
    want = jax.jit(fn)(Q, KEYS, V)
    np.testing.assert_allclose(fn(Q, KEYS, V), want, atol=1e-6)
    mapped = jax.jit(jax.vmap(lambda *x: fn(*(y[None] for y in x))[0]))(Q, KEYS, V)
    np.testing.assert_allclose(mapped, want, atol=1e-6)
    _, scanned = jax.lax.scan(lambda c, x: (c, fn(*(y[None] for y in x))[0]), None, (Q, KEYS, V))
    np.testing.assert_allclose(scanned, want, atol=1e-6)
    kept = jax.jit(jax.grad(lambda q: fn(q, KEYS, V).sum()))(Q)
    remat = jax.jit(jax.grad(lambda q: jax.checkpoint(fn)(q, KEYS, V).sum()))(Q)
    np.testing.assert_allclose(remat, kept, atol=1e-6)


def test_scale_may_be_learned():
    @functools.partial(jax.jit, static_argnums=1)
    def loss(scale, backend):
        return (attention(Q, KEYS, V, scale=scale, backend=backend, **CHUNKS) ** 2).sum()

    want, slope = jax.value_and_grad(loss)(jnp.float32(0.7), "dense")
    got, other_slope = jax.value_and_grad(loss)(jnp.float32(0.7), "chunked")
    np.testing.assert_allclose([got, other_slope], [want, slope], rtol=1e-5)
    np.testing.assert_allclose(want, loss(0.7, "dense"), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (11, 1)])
def test_single_queries_and_keys(shape):
    t, s = shape
    q, k, v = Q[:, :t], KEYS[:, :s], V[:, :s]
    bias = positions.t5_relative_bias(TABLE)
    want, _ = reference.attention(q, k, v, bias=bias.block(range(t), range(s)))
    for backend in BACKENDS:
        fn = jax.jit(functools.partial(attention, bias=bias, backend=backend, **CHUNKS))
        np.testing.assert_allclose(fn(q, k, v), want, atol=2e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="do not divide"):
        attention(Q[:, :, :3], KEYS, V)
    with pytest.raises(ValueError, match="head width"):
        attention(Q[..., :4], KEYS, V)
    with pytest.raises(ValueError, match="4 axes"):
        attention(Q[0], KEYS[0], V[0])
    with pytest.raises(ValueError, match="one shape"):
        attention(Q, KEYS, V[:, :2])
    with pytest.raises(ValueError, match="needs a key"):
        attention(Q, KEYS, V, dropout_rate=0.1)
    with pytest.raises(ValueError, match="explicit"):
        attention(Q, KEYS, V, mask=jnp.ones((T, S), bool))
    with pytest.raises(ValueError, match="not one of"):
        attention(Q, KEYS, V, backend="flash")
    with pytest.raises(ValueError, match="key_chunk"):
        attention(Q, KEYS, V, key_chunk=0)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_one_query_alone_equals_itself_among_others(soft_cap):
    """Grouped heads, a mask with rows that see nothing, and a bias, in values and gradients."""
    visible = jax.random.bernoulli(jax.random.key(6), 0.5, (B, N, T, S)).at[0, :, 3].set(False)
    to_out = rand(7, B, N * H)

    def loss(inputs, t, alone):
        q, k, v, array = inputs
        rows = slice(t, t + 1) if alone else slice(None)
        out, weights = attention(
            q[:, rows], k, v, mask=masks.explicit(visible[:, :, rows]), bias=array[:, :, rows],
            soft_cap=soft_cap, backend="dense", return_weights=True,
        )  # fmt: skip
        row = 0 if alone else t
        out_BNH, weights_BNS = out[:, row], weights[:, :, row]
        return (out_BNH.reshape(B, -1) * to_out).sum(), (out_BNH, weights_BNS)

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    for t in (3, 5):
        given = (Q, KEYS, V, ARRAY)
        chex.assert_trees_all_close(step(given, t, True), step(given, t, False), atol=2e-6)
