"""The two families against published implementations, with random weights in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.models import decoder, encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, V, D, N, L = 2, 11, 71, 24, 4, 3
H = D // N


def array(tensor) -> np.ndarray:
    return tensor.detach().numpy()


def stacked(model, pattern: str, transform=lambda x: x) -> np.ndarray:
    weights = dict(model.named_parameters())
    return np.stack([transform(array(weights[pattern.format(i)])) for i in range(L)])


def randomise(model) -> None:
    """Makes every parameter, norms and biases too, random: zeros and ones hide mistakes."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval()


def heads(x: np.ndarray, count: int = N) -> np.ndarray:
    """[out, in] of torch -> [in, heads, H]."""
    return x.T.reshape(x.shape[1], count, -1)


def close(ours, theirs) -> None:
    theirs = array(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (B, T))


def test_gpt2(tokens):
    """Pre-norm, learned positions, tanh GELU, biases, tied head."""
    config = transformers.GPT2Config(vocab_size=V, n_positions=16, n_embd=D, n_layer=L, n_head=N)
    theirs = transformers.GPT2LMHeadModel(config)
    randomise(theirs)
    block = "transformer.h.{}."
    qkv = stacked(theirs, block + "attn.c_attn.weight").reshape(L, D, 3, N, H)
    qkv_bias = stacked(theirs, block + "attn.c_attn.bias").reshape(L, 3, N, H)
    params = {
        "embed": {
            "tokens": array(theirs.transformer.wte.weight),
            "positions": array(theirs.transformer.wpe.weight),
        },
        "layers": {
            "attention": {
                **{name: qkv[:, :, i] for i, name in enumerate("qkv")},
                **{f"{name}_bias": qkv_bias[:, i] for i, name in enumerate("qkv")},
                "out": stacked(theirs, block + "attn.c_proj.weight").reshape(L, N, H, D),
                "out_bias": stacked(theirs, block + "attn.c_proj.bias"),
            },
            "attention_norm": norm(theirs, block + "ln_1"),
            "feed_forward_norm": norm(theirs, block + "ln_2"),
            "feed_forward": {
                "in": stacked(theirs, block + "mlp.c_fc.weight"),
                "in_bias": stacked(theirs, block + "mlp.c_fc.bias"),
                "out": stacked(theirs, block + "mlp.c_proj.weight"),
                "out_bias": stacked(theirs, block + "mlp.c_proj.bias"),
            },
        },
        "final_norm": {
            "scale": array(theirs.transformer.ln_f.weight),
            "bias": array(theirs.transformer.ln_f.bias),
        },
    }
    model = decoder.make(
        decoder.Config(vocab_size=V, max_length=16, width=D, num_layers=L, num_heads=N)
    )
    same_tree(model, params)
    logits = model.logits(params, model.apply(params, {"tokens": jnp.array(tokens)}).hidden_BTD)
    close(logits, theirs(torch.tensor(tokens)).logits)


def norm(model, pattern: str) -> dict[str, np.ndarray]:
    return {
        "scale": stacked(model, pattern + ".weight"),
        "bias": stacked(model, pattern + ".bias"),
    }


def same_tree(model, params) -> None:
    """The reference's weights fill our tree exactly: no array is left over, none is missing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)


def test_llama(tokens):
    """RMS norm, RoPE in halves, grouped queries, SwiGLU, no biases, own head."""
    K, F = 2, 40
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=K,
        max_position_embeddings=32,
    )
    theirs = transformers.LlamaForCausalLM(config)
    randomise(theirs)
    block = "model.layers.{}."
    params = {
        "embed": {"tokens": array(theirs.model.embed_tokens.weight)},
        "layers": {
            "attention": {
                "q": stacked(theirs, block + "self_attn.q_proj.weight", heads),
                "k": stacked(theirs, block + "self_attn.k_proj.weight", lambda x: heads(x, K)),
                "v": stacked(theirs, block + "self_attn.v_proj.weight", lambda x: heads(x, K)),
                "out": stacked(theirs, block + "self_attn.o_proj.weight", np.transpose).reshape(
                    L, N, H, D
                ),
            },
            "attention_norm": {"scale": stacked(theirs, block + "input_layernorm.weight")},
            "feed_forward_norm": {
                "scale": stacked(theirs, block + "post_attention_layernorm.weight")
            },
            "feed_forward": {
                "gate": stacked(theirs, block + "mlp.gate_proj.weight", np.transpose),
                "in": stacked(theirs, block + "mlp.up_proj.weight", np.transpose),
                "out": stacked(theirs, block + "mlp.down_proj.weight", np.transpose),
            },
        },
        "final_norm": {"scale": array(theirs.model.norm.weight)},
        "head": {"table": array(theirs.lm_head.weight)},
    }
    model = decoder.make(
        decoder.Config(
            vocab_size=V,
            width=D,
            num_layers=L,
            num_heads=N,
            num_kv_heads=K,
            feed_forward=F,
            norm="rms_norm",
            norm_epsilon=1e-6,
            bias=False,
            activation="silu",
            gated=True,
            positions="rope",
            tie_embeddings=False,
        )
    )
    same_tree(model, params)
    logits = model.logits(params, model.apply(params, {"tokens": jnp.array(tokens)}).hidden_BTD)
    close(logits, theirs(torch.tensor(tokens)).logits)


def test_bert(tokens):
    """Post-norm, token types, embedding norm, erf GELU, masked head tied with its own bias."""
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=N,
        intermediate_size=4 * D,
        max_position_embeddings=16,
    )
    theirs = transformers.BertForMaskedLM(config)
    randomise(theirs)
    embeddings, head = theirs.bert.embeddings, theirs.cls.predictions
    block = "bert.encoder.layer.{}."
    attention = {}
    for ours, name in (("q", "query"), ("k", "key"), ("v", "value")):
        path = block + f"attention.self.{name}"
        attention[ours] = stacked(theirs, path + ".weight", heads)
        attention[f"{ours}_bias"] = stacked(theirs, path + ".bias", lambda x: x.reshape(N, H))
    out = block + "attention.output.dense"
    attention["out"] = stacked(theirs, out + ".weight", np.transpose).reshape(L, N, H, D)
    attention["out_bias"] = stacked(theirs, out + ".bias")
    params = {
        "embed": {
            "tokens": array(embeddings.word_embeddings.weight),
            "positions": array(embeddings.position_embeddings.weight),
            "token_types": array(embeddings.token_type_embeddings.weight),
            "norm": {
                "scale": array(embeddings.LayerNorm.weight),
                "bias": array(embeddings.LayerNorm.bias),
            },
        },
        "layers": {
            "attention": attention,
            "attention_norm": norm(theirs, block + "attention.output.LayerNorm"),
            "feed_forward_norm": norm(theirs, block + "output.LayerNorm"),
            "feed_forward": {
                "in": stacked(theirs, block + "intermediate.dense.weight", np.transpose),
                "in_bias": stacked(theirs, block + "intermediate.dense.bias"),
                "out": stacked(theirs, block + "output.dense.weight", np.transpose),
                "out_bias": stacked(theirs, block + "output.dense.bias"),
            },
        },
        "masked_head": {
            "kernel": array(head.transform.dense.weight).T,
            "kernel_bias": array(head.transform.dense.bias),
            "norm": {
                "scale": array(head.transform.LayerNorm.weight),
                "bias": array(head.transform.LayerNorm.bias),
            },
            "bias": array(head.bias),
        },
    }
    model = encoder.make(
        encoder.Config(
            vocab_size=V, max_length=16, width=D, num_layers=L, num_heads=N, num_token_types=2
        )
    )
    same_tree(model, params)
    types = np.random.default_rng(1).integers(0, 2, (B, T))
    valid = np.arange(T) < np.array([[T], [7]])
    out = model.apply(
        params,
        {
            "tokens": jnp.array(tokens),
            "token_types": jnp.array(types),
            "segment_ids": jnp.array(valid, jnp.int32),
        },
    )
    expected = theirs(
        torch.tensor(tokens), token_type_ids=torch.tensor(types), attention_mask=torch.tensor(valid)
    ).logits
    ours = np.asarray(model.logits(params, out.hidden_BTD))
    close(ours[valid], expected[torch.tensor(valid)])
