"""Longformer's attention is a dense mask of a window and global tokens, and is transformers'."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.longformer import longformer
from tests.ops import reference
from tests.ops.sparse_truth import check, inputs, largest_of, mask_of, rand


def global_tokens(T, *places_of_rows):
    return jnp.array([[t in places for t in range(T)] for places in places_of_rows])


def dense(T, S, window, is_global, *, causal=False, offset=0):
    """bool [B, 1, T, S]; without projections of their own, global rows are just wider ones."""
    far = np.arange(S)[None, :] - np.arange(T)[:, None] - offset
    g = np.asarray(is_global)
    seen = (np.abs(far) <= window // 2) | g[:, None, :] | g[:, offset : offset + T, None]
    return (seen & (far <= 0) if causal else seen)[:, None]


@pytest.mark.parametrize("mask", ["none", "causal", "segments", "lengths", "explicit"])
def test_it_is_the_dense_mask(mask):
    T, is_global = 37, global_tokens(37, [0, 3, 35], [20])
    spec = mask_of(mask, T)
    seen = dense(T, T, 8, is_global)
    seen = seen if spec is None else seen & np.asarray(masks.materialise(spec, T, T))
    f = functools.partial(
        longformer, window=8, is_global_BS=is_global, max_global=4, mask=spec, soft_cap=3.0,
        return_weights=True,
    )  # fmt: skip
    check(f, inputs(T), seen, soft_cap=3.0)


def test_a_bias_array_gets_its_gradient():
    T, is_global = 18, global_tokens(18, [0, 9], [])

    def f(q, k, v, bias):
        options = {"window": 4, "is_global_BS": is_global, "max_global": 2, "bias": bias}
        return longformer(q, k, v, **options, return_weights=True)

    check(f, inputs(T), dense(T, T, 4, is_global), bias=rand(3, 1, 4, T, T))


@pytest.mark.slow
def test_a_part_of_the_line():
    q, k, v = inputs(6, 20)
    is_global = global_tokens(20, [0, 16], [15])
    options = {"window": 4, "is_global_BS": is_global, "max_global": 2}
    seen = dense(6, 20, 4, is_global, causal=True, offset=14)
    got = longformer(q, k, v, offset=14, mask=masks.causal(14), **options)
    np.testing.assert_allclose(got, reference.attention(q, k, v, seen)[0], atol=1e-5)

    @jax.jit
    def row(q, t):  # as decoding does: one query, at a place that is traced
        return longformer(q, k, v, offset=t, mask=masks.causal(t), **options)

    for t in (14, 16):
        at = t - 14
        np.testing.assert_allclose(row(q[:, at : at + 1], t)[:, 0], got[:, at], atol=1e-5)


def test_global_tokens_read_with_projections_of_their_own():
    q, k, v = inputs(16)
    gq, gk, gv = (rand(10 + i, *x.shape) for i, x in enumerate((q, k, v)))
    is_global = global_tokens(16, [2], [0, 15])
    given = {"global_q_BTNH": gq, "global_k_BSKH": gk, "global_v_BSKH": gv}
    got = longformer(q, k, v, window=4, is_global_BS=is_global, max_global=2, **given)
    local, _ = reference.attention(q, k, v, dense(16, 16, 4, is_global))
    to_all, _ = reference.attention(gq, gk, gv)
    want = np.where(np.asarray(is_global)[:, :, None, None], to_all, local)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_more_global_tokens_than_said_are_never_silently_wrong():
    q, k, v = inputs(8)
    is_global = global_tokens(8, [0, 1, 2], [0])
    with pytest.raises(ValueError, match="3 global tokens, more than max_global=2"):
        longformer(q, k, v, window=2, is_global_BS=is_global, max_global=2)
    f = jax.jit(functools.partial(longformer, window=2, max_global=2))
    got = f(q, k, v, is_global_BS=is_global)
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all()
    with pytest.raises(ValueError, match="even"):
        longformer(q, k, v, window=3)


def test_no_array_of_queries_by_keys_is_made():
    is_global = jnp.arange(4000)[None] < 5

    def f(q, k, v):
        return longformer(q, k, v, window=40, is_global_BS=is_global, max_global=8)

    assert largest_of(f, 4000) < 4000 * 4000 / 25


def test_it_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    config = pytest.importorskip("transformers").LongformerConfig(
        hidden_size=24, num_attention_heads=3, attention_window=[8], attention_probs_dropout_prob=0
    )
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    module = LongformerSelfAttention(config, 0)
    x = torch.randn(2, 32, 24, dtype=torch.float32)
    kind = torch.zeros(2, 32, dtype=torch.float32)  # 0: local, above: global, below: padding
    kind[0, [0, 5, 20]], kind[1, 0], kind[1, 25:] = 10000.0, 10000.0, -10000.0
    theirs = module(
        x, attention_mask=kind, is_index_masked=kind < 0, is_index_global_attn=kind > 0,
        is_global_attn=True,
    )[0]  # fmt: skip
    to_out = torch.randn(2, 32, 24, dtype=torch.float32)
    (theirs * to_out).sum().backward()
    names = ("query", "key", "value", "query_global", "key_global", "value_global")
    layers = [getattr(module, name) for name in names]
    weights = [jnp.asarray(layer.weight.detach().numpy(), jnp.float32) for layer in layers]
    biases = [jnp.asarray(layer.bias.detach().numpy(), jnp.float32) for layer in layers]
    real = jnp.asarray((kind >= 0).numpy()).astype(jnp.int32)

    def ours(weights):
        x_BTD = jnp.asarray(x.numpy(), jnp.float32)
        q, k, v, gq, gk, gv = (
            (x_BTD @ w.T + b).reshape(2, 32, 3, 8) for w, b in zip(weights, biases, strict=True)
        )
        out = longformer(
            q, k, v, window=8, is_global_BS=jnp.asarray((kind > 0).numpy()), max_global=4,
            global_q_BTNH=gq, global_k_BSKH=gk, global_v_BSKH=gv, mask=masks.segments(real),
        ).reshape(2, 32, 24)  # fmt: skip
        return (out * jnp.asarray(to_out.numpy())).sum(), out

    (_, out), got = jax.jit(jax.value_and_grad(ours, has_aux=True))(weights)
    # Of a padded row transformers gives 0 too.
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-5, rtol=1e-5)
    for name, a, layer in zip(names, got, layers, strict=True):
        np.testing.assert_allclose(a, layer.weight.grad.numpy(), atol=1e-4, err_msg=name)
