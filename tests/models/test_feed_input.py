"""What the last feed-forward layer reads: as a decoder returns it, seen by a spy, by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop, ops
from jaxformer.models import decoder

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 30, (2, 12)), jnp.int32)
SMALL = decoder.Config(vocab_size=30, num_layers=3, width=8, num_heads=2, init_std=0.4)


def asked(config):
    model = decoder.make(config)
    params = jax.jit(model.init)(jax.random.key(0))
    out = jax.jit(model.apply, static_argnames=("return_hidden", "return_feed_input"))(
        params, {"tokens": TOKENS}, return_hidden=True, return_feed_input=True
    )
    return model, params, out


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(norm_position="post"),
        dict(norm_position="sandwich", norm="rms_norm", norm_bias=False),
        dict(norm_position="output"),
        dict(parallel_residual=True),
        dict(short_conv=3, gated=True, activation="silu"),
        dict(attention_pattern=("local", "global"), window=3, remat="full"),
        dict(num_experts=3, experts_per_token=2, gated=True, activation="silu", bias=False),
        dict(share_layers=True, unroll=1),
    ],
    ids=lambda change: ",".join(change) or "plain",
)
def test_it_is_what_the_layer_was_given(change, monkeypatch):
    """Layers that a cache makes run one by one, without jit, show their inputs to a spy."""
    config = dataclasses.replace(SMALL, **change)
    model, params, out = asked(config)
    seen = []

    def spy(function):
        def wrapped(x_BTD, *rest, **more):
            seen.append(np.asarray(x_BTD))
            return function(x_BTD, *rest, **more)

        return wrapped

    for name in ("feed_forward", "gated_feed_forward", "experts"):
        monkeypatch.setattr(ops, name, spy(getattr(ops, name)))
    cached = model.apply(
        params, {"tokens": TOKENS}, cache=model.init_cache(2, 12), return_feed_input=True
    )
    assert len(seen) == config.num_layers
    np.testing.assert_allclose(out.feed_input_BTD, seen[-1], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(cached.feed_input_BTD, seen[-1])
    assert np.abs(seen[-1] - seen[-2]).max() > 0.01


def test_by_hand():
    """Pre-norm: LN(h + attention(LN(h))) in float64, of the last block's input h."""
    _, params, out = asked(SMALL)
    layer = jax.tree.map(lambda leaf: np.asarray(leaf[-1], np.float64), params["layers"])
    h_BTD = np.asarray(out.hidden_states_LBTD[-1], np.float64)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + SMALL.norm_epsilon) * p["scale"]
            + p["bias"]
        )

    p, x_BTD = layer["attention"], norm(h_BTD, layer["attention_norm"])
    q, k, v = (
        np.einsum("btd,dnh->bnth", x_BTD, p[name]) + p[f"{name}_bias"][:, None] for name in "qkv"
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(12, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    h_BTD = h_BTD + np.einsum("bnth,nhd->btd", weights @ v, p["out"]) + p["out_bias"]
    want = norm(h_BTD, layer["feed_forward_norm"])
    np.testing.assert_allclose(out.feed_input_BTD, want, rtol=1e-4, atol=1e-5)


def test_it_is_what_the_published_layer_reads(tmp_path):
    """GPT-2 of transformers: the output of the last block's second norm."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=30)
    ours = dict(bos_token_id=0, eos_token_id=0, initializer_range=0.3)
    published = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ours)).eval()
    published.save_pretrained(tmp_path)
    read = []
    published.transformer.h[-1].mlp.register_forward_pre_hook(lambda _, x: read.append(x[0]))
    with torch.no_grad():
        published(torch.tensor(np.asarray(TOKENS)).long())
    model, params = interop.load_huggingface(tmp_path, compute_dtype="float32")
    out = model.apply(params, {"tokens": TOKENS}, return_feed_input=True)
    np.testing.assert_allclose(out.feed_input_BTD, read[0].numpy(), rtol=1e-4, atol=1e-5)
