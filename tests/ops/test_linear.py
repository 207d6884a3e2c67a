"""Products accumulate in float32 in both directions, whatever wraps them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxformer.ops.linear import einsum, linear
from tests.ops.jaxprs import equations

SPECS = [
    ("btd,df->btf", (2, 3, 8), (8, 5)),
    ("btd,dnh->btnh", (2, 3, 8), (8, 2, 4)),
    ("btnh,bsnh->bnts", (2, 3, 2, 8), (2, 5, 2, 8)),
    ("bnts,bsnh->btnh", (2, 2, 3, 8), (2, 8, 2, 4)),
    ("...d,df->...f", (2, 3, 8), (8, 5)),
]


def rand(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def f64(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def square(x, w):
    return (linear(x, w).astype(jnp.float32) ** 2).sum()


@pytest.mark.parametrize("spec, shape_a, shape_b", SPECS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_against_float64(spec, shape_a, shape_b, dtype):
    a, b = rand(0, shape_a, dtype), rand(1, shape_b, dtype)
    want = np.einsum(spec, f64(a), f64(b))
    # The operands are exact, the sum is in float32: only the last rounding remains.
    np.testing.assert_allclose(einsum(spec, a, b, out_dtype=jnp.float32), want, atol=2e-5)
    got = einsum(spec, a, b)
    assert got.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(f64(got), want, rtol=eps, atol=2e-5)

    g = rand(2, want.shape, dtype)
    d_a, d_b = jax.vjp(lambda a, b: einsum(spec, a, b), a, b)[1](g)
    in_a, rest = spec.split(",")
    in_b, out = rest.split("->")
    want_a = np.einsum(f"{out},{in_b}->{in_a}", f64(g), f64(b))
    flat = "" if "..." not in spec else "xy"
    want_b = np.einsum(f"{in_a},{out}->{in_b}".replace("...", flat), f64(a), f64(g))
    assert (d_a.dtype, d_b.dtype) == (dtype, dtype)
    np.testing.assert_allclose(f64(d_a), want_a, rtol=eps, atol=2e-5)
    np.testing.assert_allclose(f64(d_b), want_b, rtol=eps, atol=2e-5)


def test_linear_with_bias_rounds_once():
    x, w, b = rand(0, (4, 7, 64), jnp.bfloat16), rand(1, (64, 16)), rand(2, (16,))
    exact = f64(x) @ f64(w.astype(jnp.bfloat16)) + f64(b)
    y = linear(x, w, b)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(f64(y), f64(jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)))
    assert linear(x.astype(jnp.float32), w).dtype == jnp.float32


def test_linear_over_several_axes_is_the_flat_product():
    x, w, b = rand(0, (2, 3, 4, 5), jnp.bfloat16), rand(1, (4, 5, 6)), rand(2, (6,))
    want = linear(x.reshape(2, 3, 20), w.reshape(20, 6), b)
    np.testing.assert_array_equal(f64(linear(x, w, b, axes=2)), f64(want))
    y = linear(x, w.reshape(4, 5, 6).transpose(1, 2, 0))
    assert y.shape == (2, 3, 4, 6, 4)


def test_master_weight_receives_an_unrounded_gradient():
    x, w = rand(0, (300, 8), jnp.bfloat16), rand(1, (8, 4))
    g = jax.grad(lambda w: linear(x, w).astype(jnp.float32).sum())(w)
    assert g.dtype == jnp.float32
    np.testing.assert_allclose(g, np.tile(f64(x).sum(0)[:, None], (1, 4)), rtol=1e-5, atol=1e-5)
    assert not np.array_equal(g, g.astype(jnp.bfloat16).astype(jnp.float32))


def dots(jaxpr):
    return (eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_dot_has_like_operands_and_a_float32_sum(dtype):
    def step(x, ws):
        def body(x, w):
            return jnp.tanh(linear(x, w, w[0])), None

        return jax.lax.scan(body, x, ws)[0].astype(jnp.float32).sum()

    x, ws = rand(0, (4, 8), dtype), rand(1, (3, 8, 8))
    found = list(dots(jax.make_jaxpr(jax.grad(step, (0, 1)))(x, ws).jaxpr))
    assert len(found) == 3
    for eqn in found:
        assert {v.aval.dtype for v in eqn.invars} == {jnp.dtype(dtype)}
        assert eqn.params["preferred_element_type"] == jnp.float32


def test_vmap_jit_and_remat_agree_with_the_plain_call():
    x, w = rand(0, (3, 4, 8), jnp.bfloat16), rand(1, (3, 8, 5), jnp.bfloat16)
    one_by_one = [jax.grad(square, (0, 1))(x[i], w[i]) for i in range(3)]
    for f in (jax.grad(square, (0, 1)), jax.grad(jax.checkpoint(square), (0, 1))):
        got = jax.jit(jax.vmap(f))(x, w)
        for i in range(3):
            for have, want in zip(got, one_by_one[i]):
                np.testing.assert_allclose(f64(have[i]), f64(want), rtol=1e-2, atol=1e-3)


def test_shard_map_sums_a_replicated_weights_gradient_over_devices():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    x, w = rand(0, (4, 8), jnp.bfloat16), rand(1, (8, 5))

    def loss(x, w):
        return jax.lax.psum(square(x, w), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    got = jax.jit(jax.grad(sharded, (0, 1)))(x, w)
    want = jax.jit(jax.grad(square, (0, 1)))(x, w)
    np.testing.assert_allclose(f64(got[0]), f64(want[0]), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spec", ["ab,bc", "ab,bc,cd->ad", "aab,bc->ac", "ab,bc->a", "abc,bc->a", "a...,b->a"]
)
def test_a_bad_spec_is_named(spec):
    with pytest.raises(ValueError, match="einsum spec"):
        einsum(spec, jnp.ones((2, 2)), jnp.ones((2, 2)))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 5\)"):
        linear(jnp.ones((2, 3)), jnp.ones((4, 5)))
