"""The chunked backend needs memory in proportion to T, and runs on several devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.ops import masks, positions
from jaxformer.ops.attention import attention
from tests.ops.jaxprs import equations

N, H = 2, 8


def step(length, mask, bias, backend="chunked"):
    """Forward and backward of attention over `length`, for tracing only."""

    def loss(q, k, v, table):
        added = {
            "none": None,
            "alibi": positions.alibi(N),
            "t5": positions.t5_relative_bias(table),
        }[bias]
        out = attention(
            q, k, v, mask=mask, bias=added, soft_cap=5.0, dropout_rate=0.1, key=jax.random.key(0),
            backend=backend, query_chunk=64, key_chunk=48,
        )  # fmt: skip
        return (out**2).sum()

    q = jax.ShapeDtypeStruct((1, length, N, H), jnp.float32)
    table = jax.ShapeDtypeStruct((8, N), jnp.float32)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))), (q, q, q, table)


def largest(jaxpr):
    """The most elements of any array in a jaxpr and all that it calls."""
    made = (v.aval for eqn in equations(jaxpr) for v in eqn.outvars)
    return max(aval.size for aval in made if hasattr(aval, "size"))


@pytest.mark.parametrize(
    "name, bias",
    [("causal", "none"), ("window", "alibi"), ("segments", "t5"), ("lengths", "none")],
)
def test_no_array_of_queries_by_keys_is_ever_made(name, bias):
    length = 1000  # divided by neither chunk
    mask = {
        "causal": masks.causal(),
        "window": masks.window(100),
        "segments": masks.segments(jnp.ones((1, length), jnp.int32)) & masks.causal(),
        "lengths": masks.lengths(jnp.array([700])),
    }[name]
    fn, inputs = step(length, mask, bias)
    assert largest(jax.make_jaxpr(fn)(*inputs).jaxpr) < length * length / 25


def test_dense_attention_does_make_one():
    fn, inputs = step(1000, None, "none", "dense")
    assert largest(jax.make_jaxpr(fn)(*inputs).jaxpr) >= N * 1000 * 1000


def test_compiled_memory_grows_linearly():
    def bytes_for(length):
        fn, inputs = step(length, masks.causal(), "none")
        return fn.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    short, long = bytes_for(1024), bytes_for(4096)
    assert long < 4.4 * short
    assert long < 4096 * 4096  # bytes; one head's float32 weights alone would be four times that


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_sharded_batches_give_the_same(backend):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 20, N, H)) for i in range(3))
    table = jax.random.normal(jax.random.key(3), (8, N))

    def loss(q, k, v, table):
        out = attention(
            q, k, v, mask=masks.causal(), bias=positions.t5_relative_bias(table), backend=backend,
            query_chunk=8, key_chunk=8,
        )  # fmt: skip
        return (out**2).sum()

    def by_shard(q, k, v, table):
        return jax.lax.psum(loss(q, k, v, table), "data")

    grad = {"argnums": (0, 1, 2, 3)}
    want = jax.jit(jax.grad(loss, **grad))(q, k, v, table)
    placed = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (q, k, v)]
    mapped = jax.shard_map(
        by_shard, mesh=mesh, in_specs=(P("data"), P("data"), P("data"), P()), out_specs=P()
    )
    for fn in (loss, mapped):
        for a, b in zip(jax.jit(jax.grad(fn, **grad))(*placed, table), want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
