"""Latent attention as a model's choice: DeepSeek's published layer, and what its cache holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import decoder
from jaxformer.modules.attention import Attention, Rotary

B, T, D, N, H, P, R = 2, 9, 24, 3, 6, 4, 8
SMALL = dict(
    vocab_size=31, num_layers=2, width=D, num_heads=N, head_dim=H, feed_forward=16, max_length=32,
    positions="rope", norm="rms_norm", bias=False,
)  # fmt: skip


def config(q_rank=0, **keys):
    text = f"latent(kv_rank={R}, q_rank={q_rank}, rope_width={P})"
    return decoder.Config(**{**SMALL, "attention": text, **keys})


@pytest.mark.parametrize("q_rank", [0, 10])
@pytest.mark.parametrize("interleaved", [False, True])
def test_equal_to_the_published_layer(q_rank, interleaved):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as published

    theirs_config = transformers.DeepseekV3Config(
        hidden_size=D, num_attention_heads=N, num_key_value_heads=N, q_lora_rank=q_rank or None,
        kv_lora_rank=R, qk_rope_head_dim=P, qk_nope_head_dim=H, v_head_dim=H,
        rope_interleave=interleaved,
    )  # fmt: skip
    theirs_config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = published.DeepseekV3Attention(theirs_config, layer_idx=0)
    for parameter in theirs.parameters():  # the norms' gains too
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(B, T, D, requires_grad=True)
    turn = published.DeepseekV3RotaryEmbedding(theirs_config)(x, torch.arange(T)[None])
    hidden = torch.full((T, T), -torch.inf).triu(1)[None, None]
    want, want_weights = theirs(x, turn, hidden)
    want.sin().sum().backward()
    w = {name: jnp.asarray(p.detach().numpy()) for name, p in theirs.named_parameters()}

    def params(w):
        up = w["kv_b_proj.weight"].T.reshape(R, N, 2 * H)
        made = {
            "kv_down": w["kv_a_proj_with_mqa.weight"].T,
            "kv_norm": w["kv_a_layernorm.weight"],
        }
        if q_rank:
            made["q_down"], made["q_norm"] = w["q_a_proj.weight"].T, w["q_a_layernorm.weight"]
            made["q_up"] = w["q_b_proj.weight"].T.reshape(q_rank, N, H + P)
        else:
            made["q"] = w["q_proj.weight"].T.reshape(D, N, H + P)
        variant = {"keys_up": up[..., :H], "values_up": up[..., H:]}
        out = w["o_proj.weight"].T.reshape(N, H, D)
        return {"projections": made, "variant": variant, "out": out}

    frequencies, _ = ops.rope_frequencies(P)
    rotary = Rotary(jnp.arange(T)[None], frequencies)
    positions = "rope_interleaved" if interleaved else "rope"
    layer = Attention(config(q_rank, positions=positions))

    def loss(w, x):
        out, _, weights = layer.apply(
            {"params": params(w)}, x, rotary=rotary, mask=ops.masks.causal(), return_weights=True
        )
        return jnp.sin(out).sum(), (out, weights)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (out, weights)), (slopes, d_x) = step(w, jnp.asarray(x.detach().numpy()))
    pairs = {
        "out": (out, want),
        "weights": (weights, want_weights),
        "x": (d_x, x.grad),
        **{name: (slopes[name], p.grad) for name, p in theirs.named_parameters()},
    }
    for name, (got, right) in pairs.items():
        right = right.detach().numpy()
        np.testing.assert_allclose(got, right, atol=2e-5 * np.abs(right).max(), err_msg=name)


def test_a_token_is_remembered_by_its_latent_and_its_rotary_key():
    model = decoder.make(config())
    cache = jax.eval_shape(lambda: model.init_cache(B, 16))
    kept = sum(leaf.size for name in ("k", "v", "state") for leaf in jax.tree.leaves(cache[name]))
    assert kept == 2 * B * 16 * (R + P)  # two layers
    whole = decoder.make(decoder.Config(**SMALL))
    cache = jax.eval_shape(lambda: whole.init_cache(B, 16))
    assert kept < sum(leaf.size for name in ("k", "v") for leaf in jax.tree.leaves(cache[name]))


def test_mistakes_are_told_in_one_line():
    for keys, told in (
        ({"num_heads": 4, "num_kv_heads": 2}, r"set model\.num_kv_heads=0"),
        ({"qk_norm": True}, r"set model\.qk_norm=False"),
        ({"attention": "latent(rope_width=3)"}, "rope_width=3 is odd"),
        ({"attention": "latent(kv_rank=-1)"}, "kv_rank must be 0 or more"),
    ):
        with pytest.raises(UserError, match=told) as error:
            decoder.make(config(**keys)).init(jax.random.key(0))
        assert "\n" not in str(error.value)
