"""Relative attention against its four terms written out, one query and one key at a time."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.ops.attention import relative

B, N, H, D = 2, 3, 4, 10
CASES = [  # queries, memory, keys after the query, clamp, segments
    (5, 0, False, 0, False),
    (1, 6, False, 0, False),
    (7, 4, False, 3, False),
    (6, 0, True, 0, True),
    (3, 5, True, 2, True),
    (130, 20, False, 0, True),
    (140, 0, True, 9, False),
]


def inputs(T: int, M: int, segments: bool) -> dict:
    """Random arrays by the names of relative_attention, in float32."""
    rng = np.random.default_rng(T + M)
    S = T + M
    shapes = dict(
        q_BTNH=(B, T, N, H), k_BSKH=(B, S, N, H), v_BSKH=(B, S, N, H), w_distance_DNH=(D, N, H),
        content_bias_NH=(N, H), distance_bias_NH=(N, H),
    )  # fmt: skip
    if segments:
        shapes |= dict(segment_bias_NH=(N, H), segment_2NH=(2, N, H))
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if segments:
        types_BS = rng.integers(0, 2, (B, S)).astype(np.int32)
        arrays |= dict(q_types_BT=types_BS[:, M:], k_types_BS=types_BS)
    return arrays


def wave(distance: float) -> np.ndarray:
    angles = distance * 10000.0 ** (-np.arange(0, D, 2) / D)
    return np.concatenate([np.sin(angles), np.cos(angles)])


def expected(M: int, both_sides: bool, clamp: int, **a) -> np.ndarray:
    """Dai et al. 2019, section 3.3, and Yang et al. 2019, section 2.5, in float64."""
    a = {name: np.asarray(x, np.float64) for name, x in a.items()}
    (_, T), S = a["q_BTNH"].shape[:2], a["k_BSKH"].shape[1]
    waves = {d: wave(np.clip(d, -clamp, clamp) if clamp else d) for d in range(-T, S + 1)}
    keys = {d: np.einsum("d,dnh->nh", w, a["w_distance_DNH"]) for d, w in waves.items()}
    out = np.zeros_like(a["q_BTNH"])
    for b, t in itertools.product(range(B), range(T)):
        seen = range(S if both_sides else M + t + 1)
        q = a["q_BTNH"][b, t]
        logits_sN = []
        for s in seen:
            score = (q + a["content_bias_NH"]) * a["k_BSKH"][b, s]
            score = score + (q + a["distance_bias_NH"]) * keys[M + t - s]
            if "segment_2NH" in a:
                other = int(a["q_types_BT"][b, t] != a["k_types_BS"][b, s])
                score = score + (q + a["segment_bias_NH"]) * a["segment_2NH"][other]
            logits_sN.append(score.sum(axis=-1) / np.sqrt(H))
        p_sN = np.exp(np.array(logits_sN) - np.max(logits_sN, axis=0))
        p_sN /= p_sN.sum(axis=0)
        out[b, t] = np.einsum("sn,snh->nh", p_sN, a["v_BSKH"][b, : len(seen)])
    return out


def run(arrays: dict, T: int, M: int, both_sides: bool, clamp: int, **asked):
    S = T + M
    waves_RD = relative.distance_waves(S - 1, -(T - 1) if both_sides else 0, D, clamp=clamp)
    mask = None if both_sides else ops.masks.causal(offset=M)

    @jax.jit
    def attend(arrays):
        return relative.relative_attention(
            waves_RD=waves_RD, first=S - 1, offset=M, mask=mask, **arrays, **asked
        )

    return attend(arrays)


@pytest.mark.parametrize("T,M,both_sides,clamp,segments", CASES)
def test_equals_its_terms(T, M, both_sides, clamp, segments):
    arrays = inputs(T, M, segments)
    out = run(arrays, T, M, both_sides, clamp)
    np.testing.assert_allclose(out, expected(M, both_sides, clamp, **arrays), atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("T,M,both_sides,segments", [(600, 30, False, False), (560, 0, True, True)])
def test_chunked_equals_dense(T, M, both_sides, segments):
    """Lengths that the blocks do not divide; all gradients too."""
    arrays = inputs(T, M, segments)
    floats = {name: x for name, x in arrays.items() if x.dtype == np.float32}
    rest = {name: x for name, x in arrays.items() if name not in floats}

    def loss(floats, backend):
        out = run({**floats, **rest}, T, M, both_sides, 0, backend=backend)
        return jnp.sum(jnp.sin(out) * out)

    both = [jax.jit(jax.value_and_grad(loss), static_argnums=1)(floats, b)
            for b in ("dense", "chunked")]  # fmt: skip
    (a, d_a), (b, d_b) = both
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for name in floats:
        np.testing.assert_allclose(
            d_b[name], d_a[name], atol=2e-5 * float(jnp.abs(d_a[name]).max()), err_msg=name
        )


@pytest.mark.parametrize("T", [1, 3])
def test_a_moving_offset_equals_a_fixed_one(T):
    """Decoding: the keys lie in a buffer of 16, and the queries begin at a traced place in it."""
    arrays, S = inputs(T, 16 - T, False), 16
    waves_RD = relative.distance_waves(S - 1, 0, D)

    @jax.jit
    def decode(index):
        mask = ops.masks.causal(offset=index)
        return relative.relative_attention(
            waves_RD=waves_RD, first=S - 1, offset=index, mask=mask, **arrays
        )

    for index in (0, 5, 16 - T):
        stop = index + T
        shorter = {**arrays, "k_BSKH": arrays["k_BSKH"][:, :stop],
                   "v_BSKH": arrays["v_BSKH"][:, :stop]}  # fmt: skip
        want = run(shorter, T, index, False, 0)
        np.testing.assert_allclose(decode(index), want, atol=1e-5)


@pytest.mark.parametrize("T,S,R", [(1, 4, 4), (1, 4, 9), (4, 4, 4), (3, 5, 5), (3, 5, 7)])
def test_shift_takes_each_row_one_column_further(T, S, R):
    x_TR = jnp.arange(T * R, dtype=jnp.float32).reshape(T, R)
    out = np.asarray(relative.relative_shift(x_TR, S))
    assert out.shape == (T, S)
    for t, s in itertools.product(range(T), range(S)):
        column = T - 1 - t + s
        if column < R:
            assert out[t, s] == x_TR[t, column]
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="fewer than the"):
        relative.relative_shift(x_TR, R + 1)


def test_the_weights_meet_the_fewer(monkeypatch):
    """Few queries: the weights are multiplied with them, not with all distances; equal results."""
    specs: list[str] = []
    einsum = relative.einsum
    monkeypatch.setattr(
        relative, "einsum", lambda spec, *a, **k: (specs.append(spec), einsum(spec, *a, **k))[1]
    )
    for T, M, meets in ((2, 30, "BTNH,DNH->BTND"), (20, 12, "RD,DX->RX")):
        arrays = inputs(T, M, False)
        np.testing.assert_allclose(
            run(arrays, T, M, False, 0), expected(M, False, 0, **arrays), atol=3e-5
        )
        assert specs[0] == meets
        specs.clear()


@pytest.mark.parametrize(("T", "M"), [(2, 30), (20, 12)])
def test_gradients_in_bfloat16(T, M):
    """XLA's CPU lacks some dots of bf16 operands: none of those may come up in training."""
    arrays = inputs(T, M, False)
    low = {
        name: jnp.asarray(x, jnp.bfloat16 if name[0] in "qkv" else None)
        for name, x in arrays.items()
    }
    total = jax.jit(jax.grad(lambda a: jnp.sum(run(a, T, M, False, 0).astype(jnp.float32) ** 2)))
    for name, grad in total(low).items():
        right = np.asarray(total(arrays)[name])
        away = np.linalg.norm(np.asarray(grad, np.float32) - right)
        assert away <= 0.05 * np.linalg.norm(right), name


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_a_bias_and_a_scale_as_everywhere(backend):
    """Besides the distances', in values and gradients."""
    T, M = 5, 3
    arrays, S = inputs(T, M, False), 8
    N, H = arrays["q_BTNH"].shape[2:]
    bias = jax.random.normal(jax.random.key(8), (1, N, T, S))
    asked = {"backend": backend, "query_chunk": 2, "key_chunk": 3}

    def loss(arrays, bias, scale):
        return (run(arrays, T, M, False, 0, bias=bias, scale=scale, **asked) ** 2).sum()

    # Twice the scale is twice the queries and their biases.
    twice = {**arrays, **{n: 2 * x for n, x in arrays.items() if n == "q_BTNH" or "_bias_" in n}}
    none = run(twice, T, M, False, 0)
    got = run(arrays, T, M, False, 0, scale=2 / H**0.5, bias=jnp.zeros_like(bias), **asked)
    np.testing.assert_allclose(got, none, atol=1e-5)
    slope = jax.grad(loss, argnums=1)(arrays, bias, None)
    want = jax.grad(loss, argnums=1)(arrays, bias, 1 / H**0.5)
    np.testing.assert_allclose(slope, want, atol=1e-5)
    step = 1e-2 * jax.random.normal(jax.random.key(9), bias.shape)
    change = loss(arrays, bias + step, None) - loss(arrays, bias - step, None)
    np.testing.assert_allclose(change, 2 * (slope * step).sum(), rtol=2e-2, atol=1e-3)
