"""Traps of GPT, GPT-2, Llama and its kin; see traps.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from tests.parity.traps import (
    SMALL,
    TOKENS,
    Subject,
    Trap,
    V,
    edit,
    edits,
    fresh_norm,
    hold,
    in_the_tail,
    logits,
    published,
    shrunk,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # together nearly a minute

D, PAD = SMALL["hidden_size"], 3
_GPT = dict(vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=20)
_RMS = dict(**SMALL, num_key_value_heads=2, max_position_embeddings=64)
_GEMMA = dict(**_RMS, head_dim=4, sliding_window=4)


def ends(model, params, batch):
    """Logits of what is not padding on the left."""
    return logits(model, params, batch)[:, PAD:]


def beyond_the_longest(**rope_parameters):
    """Llama with a stretched RoPE, whose trained length the text exceeds."""
    return published(
        "LlamaForCausalLM", "LlamaConfig", **_RMS, scale=0.5,
        rope_parameters={"rope_theta": 100.0, **rope_parameters},
    )  # fmt: skip


def gemma(number, **keys):
    return published(f"Gemma{number}ForCausalLM", f"Gemma{number}{'Text' * (number == 3)}Config",
                     **{**_GEMMA, **keys}, scale=0.3)  # fmt: skip


_PADDED = {
    "tokens": np.concatenate([np.full((2, PAD), 5, np.int32), TOKENS[:, PAD:]], axis=1),
    "segment_ids": (np.arange(9) >= PAD) + np.zeros((2, 1), np.int32),
}
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "GPT-1": lambda: published("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **_GPT),
    "GPT-1, GELU": lambda: published(
        "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **_GPT, scale=0.2,
        prepare=in_the_tail(inner="mlp.c_fc", outer="mlp.c_proj"),
    ),
    "GPT-1, small variance": lambda: published(
        "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **_GPT, prepare=shrunk
    ),
    "GPT-2": lambda: published("GPT2LMHeadModel", "GPT2Config", **_GPT, scale=0.3),
    "GPT-2, GELU": lambda: published(
        "GPT2LMHeadModel", "GPT2Config", **_GPT, scale=0.2,
        prepare=in_the_tail(inner="mlp.c_fc", outer="mlp.c_proj"),
    ),
    "GPT-2, padded on the left": lambda: published(
        "GPT2LMHeadModel", "GPT2Config", **_GPT, scale=0.3, read=ends, batch=_PADDED,
        ask=lambda model, tokens: model(tokens[:, PAD:]).logits,
    ),
    "GPT-2, small variance": lambda: published(
        "GPT2LMHeadModel", "GPT2Config", **_GPT, prepare=shrunk
    ),
    "Llama": lambda: published("LlamaForCausalLM", "LlamaConfig", **_RMS, scale=0.3),
    "Llama, small variance": lambda: published(
        "LlamaForCausalLM", "LlamaConfig", **_RMS, prepare=shrunk
    ),
    "Llama, linear": lambda: beyond_the_longest(rope_type="linear", factor=4.0),
    "Llama, llama3": lambda: beyond_the_longest(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    "Llama, yarn": lambda: beyond_the_longest(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16,
    ),
    "Mistral": lambda: published(
        "MistralForCausalLM", "MistralConfig", **_RMS, sliding_window=4, scale=0.3
    ),
    "Qwen 2": lambda: published("Qwen2ForCausalLM", "Qwen2Config", **_RMS, scale=0.3),
    "Qwen 3": lambda: published("Qwen3ForCausalLM", "Qwen3Config", **_RMS, head_dim=4, scale=0.3),
    "Gemma 2": lambda: gemma(2, query_pre_attn_scalar=17, attn_logit_softcapping=2.0,
                             final_logit_softcapping=2.0),
    "Gemma 3": lambda: gemma(3, rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e4),
        sliding_attention=dict(rope_type="default", rope_theta=10.0),
    ), sliding_window_pattern=2),
}  # fmt: skip
subject = functools.cache(lambda name: SUBJECTS[name]())


def other_groups(q):
    """Queries [L, D, N, H] as if their heads took turns at the keys, and were not neighbours."""
    return q.reshape(*q.shape[:2], 2, 2, -1).swapaxes(2, 3).reshape(q.shape)


def transposed(out):
    """The output projection [L, N, H, D], square, as if Conv1D held [outputs, inputs]."""
    return out.reshape(-1, D, D).swapaxes(1, 2).reshape(out.shape)


def places(batch):
    """Positions as places in the padded row, which is what comes of it without position ids."""
    return {**batch, "positions": jnp.arange(9, dtype=jnp.int32)[None]}


_Q, _OUT = "layers/attention/q", "layers/attention/out"
TRAPS = [
    Trap("GPT-1", "norms before the sublayers", "GPT-1", {"norm_position": "pre"},
         fresh_norm("final_norm", D)),
    Trap("GPT-1", "Conv1D transposed", "GPT-1", params=edit(_OUT, transposed)),
    Trap("GPT-1", "exact GELU, as its config says", "GPT-1, GELU", {"activation": "gelu"}),
    Trap("GPT-1", "epsilon 1e-12", "GPT-1, small variance", {"norm_epsilon": 1e-12}),
    Trap("GPT-2", "norms after the sums", "GPT-2", {"norm_position": "post"}),
    Trap("GPT-2", "Conv1D transposed", "GPT-2", params=edit(_OUT, transposed)),
    Trap("GPT-2", "exact GELU", "GPT-2, GELU", {"activation": "gelu"}),
    Trap("GPT-2", "epsilon 1e-12", "GPT-2, small variance", {"norm_epsilon": 1e-12}),
    Trap("GPT-2", "left padding without position ids", "GPT-2, padded on the left", batch=places),
    Trap("GPT-2", "left padding without a mask", "GPT-2, padded on the left",
         batch=lambda batch: {**batch, "segment_ids": jnp.ones_like(batch["segment_ids"]),
                              "positions": jnp.maximum(jnp.arange(9)[None] - PAD, 0)}),
    Trap("Llama", "RoPE of interleaved pairs", "Llama", {"positions": "rope_interleaved"}),
    Trap("Llama", "heads that take turns at the keys", "Llama", params=edit(_Q, other_groups)),
    Trap("Llama", "gate and in exchanged", "Llama", params=lambda params: edits(
        edit("layers/feed_forward/in", lambda _: params["layers"]["feed_forward"]["gate"]),
        edit("layers/feed_forward/gate", lambda _: params["layers"]["feed_forward"]["in"]),
    )(params)),
    Trap("Llama", "a norm that takes the mean off", "Llama",
         {"norm": "layer_norm", "norm_bias": False}),
    Trap("Llama", "epsilon 1e-5", "Llama, small variance", {"norm_epsilon": 1e-5}),
    Trap("Llama", "linear scaling left out", "Llama, linear", {"rope_scaling": ""}),
    Trap("Llama", "llama3 scaling left out", "Llama, llama3", {"rope_scaling": ""}),
    Trap("Llama", "llama3 scaling taken for linear", "Llama, llama3", {"rope_scaling": "linear"}),
    Trap("Llama", "yarn scaling left out", "Llama, yarn", {"rope_scaling": ""}),
    Trap("Llama", "yarn without its factor on the logits", "Llama, yarn",
         patch=(ops, "rope_frequencies", lambda true, *a, **keys: (true(*a, **keys)[0], 1.0))),
    Trap("Mistral", "a window of one token more", "Mistral", {"window": 5}),
    Trap("Mistral", "no window", "Mistral", {"window": 0}),
    Trap("Qwen 2", "no biases of queries and keys", "Qwen 2", {"qkv_bias": False}),
    Trap("Qwen 3", "no norms of queries and keys", "Qwen 3", {"qk_norm": False}),
    Trap("Qwen 3", "one norm for all heads", "Qwen 3", {"qk_norm_all_heads": True}, edits(
        *(edit(f"layers/attention/{name}_norm", lambda x, n=n: np.tile(x, (1, n)))
          for name, n in (("q", 4), ("k", 2))))),
    Trap("Gemma 2", "embeddings as they are", "Gemma 2", {"embed_scale": False}),
    Trap("Gemma 2", "norms that multiply by the weight", "Gemma 2", {"norm": "rms_norm"}),
    Trap("Gemma 2", "queries scaled by their width", "Gemma 2", {"attention_scale": 0.0}),
    Trap("Gemma 2", "no norm after the sublayers", "Gemma 2", {"norm_position": "pre"}),
    Trap("Gemma 2", "no cap on attention", "Gemma 2", {"attention_soft_cap": 0.0}),
    Trap("Gemma 2", "no cap on the logits", "Gemma 2", {"logit_soft_cap": 0.0}),
    Trap("Gemma 2", "global layers where local ones are", "Gemma 2",
         {"attention_pattern": ("global", "local")}),
    Trap("Gemma 3", "embeddings as they are", "Gemma 3", {"embed_scale": False}),
    Trap("Gemma 3", "norms that multiply by the weight", "Gemma 3", {"norm": "rms_norm"}),
    Trap("Gemma 3", "one RoPE base for all layers", "Gemma 3", {"rope_local_base": 0.0}),
    Trap("Gemma 3", "no scaling in global layers", "Gemma 3", {"rope_scaling": ""}),
]  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.id)
def test_trap(trap):
    hold(trap, subject(trap.subject))
