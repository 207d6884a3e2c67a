"""Any shape: exact variants equal softmax in float64; approximations come nearer as they grow."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.nystromformer import nystromformer
from jaxformer.ops.attention.performer import orthogonal_features, performer
from tests.conformance import references
from tests.conformance.case import Case
from tests.conformance.evaluate import attend, true_values
from tests.conformance.matrix import VARIANTS

EXACT = [variant for variant in VARIANTS if variant.exact]


@st.composite
def cases(draw, variant):
    """Any small shape and mask that the variant can have, and sizes of its own."""
    even = [(2, 2), (4, 2)]  # heads of differential attention come in pairs
    heads = draw(st.sampled_from(even if variant.pairs else [(1, 1), (2, 1), *even]))
    T = draw(st.integers(1, 23))
    other = "T ≠ S" not in variant.cannot
    S = draw(st.integers(T, 24)) if other else T
    B = draw(st.integers(1, 2))
    lengths_B = draw(st.none() | st.lists(st.integers(0, S), min_size=B, max_size=B))
    can_be_causal = variant.causal in ("either", "always")
    case = Case(
        B=B, T=T, S=S, N=heads[0], K=heads[1], H=draw(st.sampled_from([4, 8])), offset=S - T,
        causal=can_be_causal and draw(st.booleans()), lengths_B=lengths_B,
    )  # fmt: skip
    sizes = {n: draw(st.integers(*limits)) for n, limits in variant.sizes.items()}
    return case, sizes, draw(st.integers(0, 99))


@pytest.mark.slow
@pytest.mark.parametrize("variant", EXACT, ids=str)
@settings(max_examples=8, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(data=st.data())
def test_any_shape_equals_the_reference(variant, data):
    case, sizes, seed = data.draw(cases(variant))
    variant = dataclasses.replace(variant, static={**variant.static, **sizes})
    arrays, own = variant.draw(case, seed)
    out = jax.jit(lambda arrays, own: attend(variant, arrays, own, case.mask(), case.offset))(
        arrays, own
    )
    want = true_values(variant, arrays, own, case)
    np.testing.assert_allclose(out, want, rtol=0, atol=variant.tolerance)


def unlike_softmax(out, arrays, case):
    q, k, v = (np.asarray(x, np.float64) for x in arrays)
    want = references.plain(np, q, k, v, case)
    return np.linalg.norm(np.asarray(out) - want) / np.linalg.norm(want)


def small_inputs(T=32):
    case = Case(B=1, T=T, S=T, N=2, K=2, H=8)
    rng = np.random.default_rng(0)
    shape = (1, T, 2, 8)
    return case, [np.asarray(rng.standard_normal(shape), np.float32) for _ in range(3)]


def test_performer_comes_nearer_to_softmax_with_more_features():
    """The variance is that of a mean: 16 times the features, a quarter of the error."""
    case, (q, k, v) = small_inputs()
    arrays = q / 2, k / 2, v  # for larger ones a few of the products make up all variance

    def error(num_features):
        @jax.jit
        @jax.vmap
        def of(key):
            return performer(*arrays, features_MH=orthogonal_features(key, num_features, 8))

        outs = of(jax.random.split(jax.random.key(0), 8))
        return np.mean([unlike_softmax(out, arrays, case) for out in outs])

    few, more, many = error(16), error(256), error(4096)
    assert few / more > 2.5 and more / many > 2.5
    assert many < 0.05


@pytest.mark.slow
def test_nystromformer_comes_nearer_to_softmax_with_more_landmarks_and_equals_it_with_all():
    case, (q, k, v) = small_inputs()
    # Smooth along the line, as a landmark is a mean of neighbours.
    smooth = np.exp(-(((np.arange(32)[:, None] - np.arange(32)) / 4.0) ** 2))
    q, k = (np.einsum("ts,bsnh->btnh", smooth / 3, x).astype(np.float32) for x in (q, k))
    error = [
        unlike_softmax(nystromformer(q, k, v, num_landmarks=n, iterations=12), (q, k, v), case)
        for n in (2, 4, 8, 32)
    ]
    assert error[0] > error[1] > error[2] > error[3]
    assert error[3] < 1e-6


def test_linformer_of_full_rank_is_softmax():
    case, arrays = small_inputs()
    out = linformer(*arrays, keys_NLC=np.eye(32, dtype=np.float32))
    assert unlike_softmax(out, arrays, case) < 1e-6
    half = linformer(*arrays, keys_NLC=np.eye(32, dtype=np.float32)[:, :16])
    assert unlike_softmax(half, arrays, case) > 1e-2
