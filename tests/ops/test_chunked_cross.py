"""Chunked cross-attention: the paper's definition, token by token, in float64; and causality."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks, positions
from jaxformer.ops.attention.chunked_cross import chunked_cross_attention

B, T, N, K, H, S, M = 2, 14, 4, 2, 8, 5, 4  # 3 whole chunks of 4, and a half
L = T // M


def rand(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, L, S, K, H), rand(2, B, L, S, K, H)
VALID = jnp.asarray(np.random.default_rng(3).random((B, L, S)) < 0.6).at[0, 1].set(False)


def by_definition(q, k, v, chunk, valid=None, mask=None, bias=None, scale=None, offset=0):
    """Borgeaud 2022, section 2.4: with positions from 1, chunk u = 1 ... l is read by positions
    u m, ..., u m + m - 1, so the first m - 1 read nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    S = k.shape[2]
    scale = 1 / np.sqrt(H) if scale is None else scale
    out, weights = np.zeros_like(q), np.zeros((B, N, T, S))
    for b, t, n in np.ndindex(B, T, N):
        u = (t + offset + 1) // chunk
        if u == 0:
            continue
        head = n // (N // k.shape[3])
        logits = np.array([scale * q[b, t, n] @ k[b, u - 1, s, head] for s in range(S)])
        if bias is not None:
            logits += np.broadcast_to(bias, (B, N, T, S))[b, n, t]
        seen = np.ones(S, bool) if valid is None else np.asarray(valid)[b, u - 1]
        if mask is not None:
            seen = seen & np.broadcast_to(mask, (B, N, T, S))[b, n, t]
        if not seen.any():
            continue
        e = np.where(seen, np.exp(logits - logits[seen].max()), 0.0)
        weights[b, n, t] = e / e.sum()
        out[b, t, n] = weights[b, n, t] @ v[b, u - 1, :, head]
    return out, weights


@pytest.mark.parametrize("backend", ["auto", "dense", "chunked"])
@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "some"])
def test_it_is_the_papers_definition(backend, valid):
    out = chunked_cross_attention(Q, KEYS, V, chunk=M, valid_BLS=valid, backend=backend)
    want, _ = by_definition(Q, KEYS, V, M, valid)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert not np.asarray(out[:, : M - 1]).any()


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 11])
def test_any_length(length):
    chunks = max(length // M, 1)  # the text has none below 4 tokens; an array needs one
    args = Q[:, :length], KEYS[:, :chunks], V[:, :chunks]
    want, of_weights = by_definition(*args, M)
    out, weights = chunked_cross_attention(*args, chunk=M, return_weights=True)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(weights, of_weights, atol=1e-5)


def test_mask_bias_scale_and_weights():
    mask_BNTS = np.random.default_rng(5).random((B, N, T, S)) < 0.7
    bias_BNTS = np.asarray(rand(6, B, 1, T, S))
    for mask, bias in ((mask_BNTS, bias_BNTS), (mask_BNTS[:1, :, :1], bias_BNTS[:, :, :1])):
        want = by_definition(Q, KEYS, V, M, VALID, mask, bias, scale=0.7)
        for backend in ("dense", "chunked"):
            got = chunked_cross_attention(
                Q, KEYS, V, chunk=M, valid_BLS=VALID, mask=masks.explicit(jnp.asarray(mask)),
                bias=bias, scale=0.7, backend=backend, return_weights=True,
            )  # fmt: skip
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_mask_of_the_batch():
    lengths = np.array([2, 4])
    out = chunked_cross_attention(Q, KEYS, V, chunk=M, mask=masks.lengths(jnp.asarray(lengths)))
    seen = np.arange(S) < lengths[:, None, None, None]
    np.testing.assert_allclose(out, by_definition(Q, KEYS, V, M, mask=seen)[0], atol=1e-5)


@functools.cache
def reads():
    """Returns which queries [t] depend on which chunk's keys or values [u], by gradient."""

    def out_T(k, v):
        return jnp.abs(chunked_cross_attention(Q[:1], k, v, chunk=M)).sum((0, 2, 3))

    by_key, by_value = jax.jacrev(out_T, (0, 1))(KEYS[:1], V[:1])
    return np.stack([np.abs(np.asarray(x)).sum((1, 3, 4, 5)) for x in (by_key, by_value)])


def test_no_query_reads_what_was_found_for_a_chunk_that_has_not_ended():
    for t, u in np.ndindex(T, L):
        read = reads()[:, t, u]
        if (t + 1) // M - 1 == u:
            assert (read > 0).all(), (t, u)
        else:
            assert (read == 0).all(), (t, u)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 6, 7, 11])
def test_with_an_offset_it_is_a_part_of_the_line(offset):
    whole = chunked_cross_attention(Q, KEYS, V, chunk=M, valid_BLS=VALID)
    for size in (1, 3) if offset < T - 2 else (1,):
        part = chunked_cross_attention(
            Q[:, offset : offset + size], KEYS, V, chunk=M, valid_BLS=VALID, offset=offset
        )
        np.testing.assert_allclose(part, whole[:, offset : offset + size], atol=1e-6)


def test_with_a_traced_offset_it_decodes():
    whole = chunked_cross_attention(Q, KEYS, V, chunk=M, valid_BLS=VALID)

    @jax.jit
    def part(q, at):
        return chunked_cross_attention(q, KEYS, V, chunk=M, valid_BLS=VALID, offset=at)

    for size in (1, 6):
        for t in range(T - size + 1):
            np.testing.assert_allclose(
                part(Q[:, t : t + size], t), whole[:, t : t + size], atol=1e-6
            )


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_gradients_are_those_of_the_formula_and_finite_where_nothing_is_seen(backend):
    to_out = rand(7, B, T, N, H)

    def loss(*args):
        out = chunked_cross_attention(*args, chunk=M, valid_BLS=VALID, backend=backend)
        return (out * to_out).sum()

    got = jax.jit(jax.grad(loss, (0, 1, 2)))(Q, KEYS, V)
    args = [np.asarray(x, np.float64) for x in (Q, KEYS, V)]
    for which, gradient in enumerate(got):
        assert np.isfinite(gradient).all()
        for seed in range(3):  # along random directions, by differences in float64
            way = np.random.default_rng(seed).normal(size=gradient.shape)
            ends = []
            for sign in (1e-5, -1e-5):
                moved = [x + sign * way if i == which else x for i, x in enumerate(args)]
                ends.append((by_definition(*moved, M, VALID)[0] * np.asarray(to_out)).sum())
            np.testing.assert_allclose(
                (gradient * way).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-3
            )


def test_bf16_vmap_and_scan():
    args = tuple(x.astype(jnp.bfloat16) for x in (Q, KEYS, V))
    out = chunked_cross_attention(*args, chunk=M, valid_BLS=VALID)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), by_definition(*args, M, VALID)[0], atol=2e-2
    )
    want = by_definition(Q, KEYS, V, M)[0]

    def one(q, k, v):
        return chunked_cross_attention(q[None], k[None], v[None], chunk=M)[0]

    np.testing.assert_allclose(jax.vmap(one)(Q, KEYS, V), want, atol=1e-5)
    _, scanned = jax.lax.scan(lambda c, x: (c, one(*x)), 0, (Q, KEYS, V))
    np.testing.assert_allclose(scanned, want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_BTNH": rand(0, B, T + 2, N, H)}, "4 whole chunks of 4, but k has neighbours of 3"),
        ({"k_BLSKH": KEYS[:, :, :2]}, "one shape"),
        ({"chunk": 0}, "chunk must be 1 or more"),
        ({"valid_BLS": VALID[:1]}, "valid must be bool"),
        ({"mask": masks.causal() | masks.sinks(1)}, "causal as it is"),
        ({"bias": positions.alibi(N)}, "no bias by distance"),
    ],
)
def test_mistakes_are_one_line(change, message):
    given = {"q_BTNH": Q, "k_BLSKH": KEYS, "v_BLSKH": V, "chunk": M} | change
    with pytest.raises(ValueError, match=message) as caught:
        chunked_cross_attention(
            given.pop("q_BTNH"), given.pop("k_BLSKH"), given.pop("v_BLSKH"), **given
        )
    assert "\n" not in str(caught.value)
