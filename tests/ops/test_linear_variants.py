"""What all linear ways to attend have in common: their cost, and what changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxformer.ops import masks
from jaxformer.ops.attention.linear_attention import linear_attention, retention_log_decay
from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.nystromformer import nystromformer
from jaxformer.ops.attention.performer import orthogonal_features, performer
from tests.ops.jaxprs import equations

B, T, N, K, H = 2, 13, 4, 2, 8
IDS = jnp.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 4 + [3] * 9])
W = orthogonal_features(jax.random.key(0), 12, H)
FILTERS = jax.random.normal(jax.random.key(1), (N, 3))
GATES = -jnp.exp(jax.random.normal(jax.random.key(2), (B, T, N, H)))


def project(length):
    return jnp.cos(jnp.arange(length)[:, None] * jnp.arange(1, 6)) / 4


def gates(length):
    return jnp.broadcast_to(GATES[:1, :1], (1, length, N, H))


# Functions of (q, k, v, mask), which may be causal or not.
CAUSAL = {
    "performer": lambda q, k, v, m: performer(q, k, v, features_MH=W, mask=m, chunk=8),
    "relu": lambda q, k, v, m: performer(q, k, v, features_MH=W, mask=m, kernel="relu", chunk=8),
    "linear": lambda q, k, v, m: linear_attention(q, k, v, mask=m, chunk=8),
    "retention": lambda q, k, v, m: linear_attention(
        q, k, v, mask=m, log_decay=retention_log_decay(N), kernel="identity", chunk=8
    ),
    "gates": lambda q, k, v, m: linear_attention(
        q, k, v, mask=m, kernel="identity", chunk=8,
        log_decay=jnp.broadcast_to(gates(q.shape[1]), q.shape),
    ),
}  # fmt: skip
OPEN = {
    "linformer": lambda q, k, v, m: linformer(q, k, v, keys_NLC=project(k.shape[1]), mask=m),
    "nystromformer": lambda q, k, v, m: nystromformer(
        q, k, v, num_landmarks=4, kernel_NW=FILTERS, mask=m
    ),
    **{name: CAUSAL[name] for name in ("performer", "relu", "linear")},
}
ALL = [(name, fn, masks.causal()) for name, fn in CAUSAL.items()]
ALL += [(f"open {name}", fn, masks.lengths(jnp.array([T, 9]))) for name, fn in OPEN.items()]
IDENTIFIED = pytest.mark.parametrize("fn, mask", [x[1:] for x in ALL], ids=[x[0] for x in ALL])


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def given(batch=B, length=T):
    q, k, v = (
        rand(0, batch, length, N, H),
        rand(1, batch, length, K, H),
        rand(2, batch, length, K, H),
    )
    return q, k, v


def loss_of(fn, mask):
    return lambda *x: jnp.square(fn(*x, mask).astype(jnp.float32)).sum()


@pytest.mark.parametrize("name", [*CAUSAL, *(f"open {name}" for name in OPEN)])
def test_no_array_of_queries_by_keys_is_ever_made(name):
    length = 1000
    fn = OPEN[name[5:]] if name.startswith("open") else CAUSAL[name]
    mask = masks.lengths(jnp.array([700]))
    mask = mask if name.startswith("open") else mask & masks.causal()
    step = jax.grad(loss_of(fn, mask), argnums=(0, 1, 2))
    made = equations(jax.make_jaxpr(step)(*given(1, length)).jaxpr)
    sizes = [v.aval.size for eqn in made for v in eqn.outvars if hasattr(v.aval, "size")]
    assert length * N * H <= max(sizes) < length * length / 5


@pytest.mark.parametrize("name", ["performer", "gates", "open nystromformer"])
def test_compiled_memory_grows_linearly(name):
    fn = OPEN[name[5:]] if name.startswith("open") else CAUSAL[name]
    mask = None if name.startswith("open") else masks.causal()

    def bytes_for(length):
        step = jax.jit(jax.grad(loss_of(fn, mask), argnums=(0, 1, 2)))
        compiled = step.lower(*given(1, length)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_for(8192) < 4.4 * bytes_for(2048)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_no_gradient_flows_against_the_mask(name, packed):
    mask = masks.segments(IDS) & masks.causal() if packed else masks.causal()
    q, k, v = given()
    allowed = np.broadcast_to(masks.materialise(mask, T, T), (B, 1, T, T))[:, 0]
    _, backward = jax.vjp(lambda k, v: CAUSAL[name](q, k, v, mask), k, v)
    one_query = jax.jit(jax.vmap(lambda t: backward(jnp.zeros((B, T, N, H)).at[:, t].set(1.0))))
    _, d_v_TBSKH = one_query(jnp.arange(T))
    reaches = np.asarray(jnp.abs(d_v_TBSKH).max(axis=(3, 4))).transpose(1, 0, 2)
    np.testing.assert_array_equal(reaches > 0, allowed)
    d_k_TBSKH, _ = one_query(jnp.arange(T))
    assert (np.asarray(jnp.abs(d_k_TBSKH).max(axis=(3, 4))).transpose(1, 0, 2)[~allowed] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, causal",
    [("performer", False), ("linear", False), ("performer", True), ("retention", True)],
)
def test_packed_equals_separate(name, causal):
    order = masks.causal() if causal else None
    mask = masks.segments(IDS) & order if causal else masks.segments(IDS)
    q, k, v = given()
    out = jax.jit(lambda *x: CAUSAL[name](*x, mask))(q, k, v)
    alone = jax.jit(lambda *x: CAUSAL[name](*x, order))
    for row, start, stop in [(0, 0, 5), (0, 5, 11), (1, 0, 4), (1, 4, 13)]:
        want = alone(*(x[row : row + 1, start:stop] for x in (q, k, v)))
        np.testing.assert_allclose(out[row : row + 1, start:stop], want, rtol=1e-5, atol=1e-5)
    assert (np.asarray(out[0, 11:]) == 0).all()


@pytest.mark.parametrize("name", [*CAUSAL, *(f"open {name}" for name in OPEN)])
def test_nothing_to_attend_to_is_zero_with_zero_gradients(name):
    fn = OPEN[name[5:]] if name.startswith("open") else CAUSAL[name]
    nothing = masks.lengths(jnp.zeros(B, jnp.int32))
    mask = nothing if name.startswith("open") else nothing & masks.causal()

    def loss(*x):
        out = fn(*x, mask)
        return (out + 1.0).prod(), out

    for array in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*given())):
        assert (np.asarray(array) == 0).all()


@pytest.mark.slow
@IDENTIFIED
def test_bfloat16_costs_only_its_own_rounding(fn, mask):
    small = [x.astype(jnp.bfloat16) for x in given()]
    exact = [x.astype(jnp.float32) for x in small]
    step = jax.jit(jax.value_and_grad(loss_of(fn, mask), argnums=(0, 1, 2)))
    assert jax.eval_shape(lambda *x: fn(*x, mask), *small).dtype == jnp.bfloat16
    (value, gradients), (want, wanted) = step(*small), step(*exact)
    np.testing.assert_allclose(value, want, rtol=0.02)
    for a, b in zip(gradients, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(a, np.float32) - b) < 0.05 * np.linalg.norm(b)


@pytest.mark.slow
@IDENTIFIED
def test_transformations_change_nothing(fn, mask):
    causal = isinstance(mask, masks.Causal)
    mask = mask if causal else None
    given_ = given()
    run = jax.jit(lambda *x: fn(*x, mask))
    want = run(*given_)
    np.testing.assert_allclose(fn(*given_, mask), want, atol=1e-5)
    mapped = jax.vmap(lambda *x: fn(*(y[None] for y in x), mask)[0])(*given_)
    np.testing.assert_allclose(mapped, want, atol=1e-5)
    step = jax.jit(jax.grad(loss_of(fn, mask), argnums=(0, 1, 2)))
    again = jax.jit(jax.grad(jax.checkpoint(loss_of(fn, mask)), argnums=(0, 1, 2)))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def by_shard(*x):
        return jax.lax.psum(loss_of(fn, mask)(*x), "data")

    mapped = jax.shard_map(by_shard, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P())
    sharded = jax.jit(jax.grad(mapped, argnums=(0, 1, 2)))
    for other in (again, sharded):
        for a, b in zip(other(*given_), step(*given_), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
