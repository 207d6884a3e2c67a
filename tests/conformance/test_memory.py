"""What claims linear cost needs memory in proportion to T, forward and backward."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance.case import Case
from tests.conformance.evaluate import attend, gradients
from tests.conformance.matrix import VARIANTS
from tests.ops.jaxprs import equations

SHORT, LONG = 1024, 4096
LINEAR = [variant for variant in VARIANTS if variant.linear]


def step(variant, length):
    """Values and gradients over `length` tokens, with inputs for tracing only."""
    keys = length if variant.keys == 20 else 16
    case = Case(B=1, T=length, S=keys, N=2, K=2, H=8, causal=variant.causal == "always")
    variant = dataclasses.replace(variant, static=variant.long)
    arrays, own = variant.draw(case)
    probe = jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)
    run = functools.partial(gradients, functools.partial(attend, variant))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    return jax.jit(lambda arrays, own, probe: run(arrays, own, case.mask(), probe)), (
        shapes,
        own,
        probe,
    )


def largest(jaxpr):
    """The most elements of any array in a jaxpr and all that it calls."""
    most = 0
    for eqn in equations(jaxpr):
        for out in eqn.outvars:
            most = max(most, math.prod(getattr(out.aval, "shape", ())))
    return most


@pytest.mark.parametrize("variant", LINEAR, ids=str)
def test_no_array_is_as_large_as_queries_times_keys(variant):
    """Shown by growth: what holds T x S weights grows 16 times when T and S grow 4 times."""
    sizes = []
    for length in (SHORT, LONG):
        fn, inputs = step(variant, length)
        sizes.append(largest(jax.make_jaxpr(fn)(*inputs).jaxpr))
    assert sizes[1] <= 4.4 * sizes[0]
    assert sizes[1] < LONG * LONG / 4


@pytest.mark.slow
@pytest.mark.parametrize("variant", LINEAR, ids=str)
def test_compiled_memory_grows_linearly(variant):
    def bytes_for(length):
        fn, inputs = step(variant, length)
        return fn.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    slope = np.log(bytes_for(LONG) / bytes_for(SHORT)) / np.log(LONG / SHORT)
    assert slope <= 1.15


def test_dense_attention_would_be_found_out():
    dense = next(variant for variant in VARIANTS if variant.name == "dense")
    fn, inputs = step(dense, SHORT)
    assert largest(jax.make_jaxpr(fn)(*inputs).jaxpr) >= 2 * SHORT * SHORT
