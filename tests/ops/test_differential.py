"""Differential attention: the paper's formula, the published layer, and how lambda begins."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.ops import masks
from jaxformer.ops.attention.differential import (
    differential_attention,
    differential_factor,
    differential_start,
)
from tests.ops import reference

B, T, S, N, K, H = 2, 9, 11, 8, 4, 6
IDS = jnp.array([[1] * 4 + [2] * 4 + [0] * 3, [1] * S])
MASKS = {
    "none": None,
    "causal": masks.causal(2),
    "packed": masks.segments(IDS[:, :T], IDS) & masks.causal(2),
    "nothing": masks.lengths(jnp.array([0, 5])),
}
FACTOR = np.linspace(0.2, 0.9, N // 2)


def rand(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


Q, KEYS, V = rand(0, B, T, N, H), rand(1, B, S, K, H), rand(2, B, S, K // 2, 2 * H)


def truth(mask):
    """Eq. 1 of the paper in float64; heads 2 j and 2 j + 1 are a pair, keys are grouped."""
    allowed = None if mask is None else masks.materialise(mask, T, S)
    _, each_BNTS = reference.attention(Q, KEYS, KEYS, allowed)
    weights = each_BNTS[:, ::2] - FACTOR[None, :, None, None] * each_BNTS[:, 1::2]
    values = np.repeat(np.asarray(V, np.float64), N // K, axis=2)  # one for each pair of queries
    return np.einsum("bnts,bsnx->btnx", weights, values), weights


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("name", MASKS)
def test_the_formula(name, backend):
    def loss(q, k, v, factor):
        out, weights = differential_attention(
            q, k, v, factor=factor, mask=MASKS[name], backend=backend, return_weights=True
        )
        return (out**2).sum(), (out, weights)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    (_, (out, weights)), gradients = step(Q, KEYS, V, jnp.asarray(FACTOR, jnp.float32))
    want, want_weights = truth(MASKS[name])
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(weights, want_weights, atol=1e-6)
    seen = np.abs(want_weights).sum(axis=-1) > 0
    sums = np.broadcast_to(1 - FACTOR[None, :, None], seen.shape)
    np.testing.assert_allclose(np.asarray(weights).sum(-1)[seen], sums[seen], atol=1e-5)
    assert (np.moveaxis(np.asarray(out), 2, 1)[~seen] == 0).all()
    assert all(np.isfinite(x).all() for x in gradients)
    # The slope of lambda is the second softmax's output, against the output's cotangent.
    second = _second(MASKS[name]) * 2 * want
    np.testing.assert_allclose(gradients[3], -second.sum(axis=(0, 1, 3)), rtol=2e-4, atol=1e-5)


def _second(mask):
    allowed = None if mask is None else masks.materialise(mask, T, S)
    _, each_BNTS = reference.attention(Q, KEYS, KEYS, allowed)
    values = np.repeat(np.asarray(V, np.float64), N // K, axis=2)
    return np.einsum("bnts,bsnx->btnx", each_BNTS[:, 1::2], values)


def test_equal_to_the_published_layer():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    D, n, layer = N * H, N // 2, 3
    config = transformers.DiffLlamaConfig(
        hidden_size=D, num_attention_heads=N, num_key_value_heads=N, attention_dropout=0.0,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = DiffLlamaAttention(config, layer_idx=layer).eval()
    x = torch.randn(B, T, D)
    still = (torch.ones(1, T, H), torch.zeros(1, T, H))  # RoPE that turns nothing
    hidden = torch.full((T, T), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        want = theirs(x, still, hidden)[0].numpy()
    w = {name: jnp.asarray(p.detach().numpy()) for name, p in theirs.named_parameters()}
    q, k, v = (
        (jnp.asarray(x.numpy()) @ w[f"{name}_proj.weight"].T).reshape(B, T, N, H) for name in "qkv"
    )

    def pair(x):  # theirs are j and j + n; ours stand side by side
        return x.reshape(B, T, 2, n, H).swapaxes(2, 3)

    factor = differential_factor(
        *(w[f"lambda_{name}"] for name in ("q1", "k1", "q2", "k2")), differential_start(layer)
    )
    out = differential_attention(
        pair(q).reshape(B, T, N, H), pair(k).reshape(B, T, N, H), pair(v).reshape(B, T, n, 2 * H),
        factor=factor, mask=masks.causal(),
    )  # fmt: skip
    out = ops.rms_norm(out, None, eps=1e-5) * (1 - differential_start(layer))
    got = out.reshape(B, T, D) @ w["o_proj.weight"].T
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_lambda_begins_lower_in_the_first_layers():
    start = [float(differential_start(layer)) for layer in range(12)]
    np.testing.assert_allclose(start[0], 0.2, atol=1e-6)
    assert (np.diff(start) > 0).all() and start[-1] < 0.8
    zeros = jnp.zeros(H)
    np.testing.assert_allclose(differential_factor(zeros, zeros, zeros, zeros, 0.5), 0.5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="in pairs, not 7 and 4"):
        differential_attention(Q[:, :, :7], KEYS, V, factor=0.5)
    with pytest.raises(ValueError, match="half as many heads and twice as wide"):
        differential_attention(Q, KEYS, KEYS, factor=0.5)
