"""Rows of the ledger: decoders, which write text."""

from __future__ import annotations

from tests.parity.published import V, case, several

_GPT = dict(vocab_size=V, n_positions=40, n_embd=24, n_layer=3, n_head=4)
_ENDS = dict(bos_token_id=None, eos_token_id=None)
DECODERS = [
    *(
        case("GPT-1", name, "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {**_GPT, **changes},
             writes="rows",
             quirk="its text takes no padding: asked row by row; its 'gelu' is the tanh form")
        for name, changes in (("small", {}), ("relu", dict(afn="relu")),
                              ("one layer, three heads", dict(n_layer=1, n_head=3)))
    ),
    *(
        case("GPT-2", name, "GPT2LMHeadModel", "GPT2Config", {**_GPT, **_ENDS, **changes})
        for name, changes in (
            ("small", {}),
            ("inner width, exact gelu", dict(n_inner=31, activation_function="gelu")),
            ("untied, three heads", dict(tie_word_embeddings=False, n_head=3)),
        )
    ),
    *several(
        "Llama", "LlamaForCausalLM", "LlamaConfig",
        {
            "grouped queries": dict(num_key_value_heads=2, **_ENDS),
            "tied, all heads": dict(tie_word_embeddings=True, head_dim=8, **_ENDS),
            "Llama 3.1 scaling": dict(
                num_key_value_heads=1, max_position_embeddings=64,
                rope_parameters=dict(
                    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                    high_freq_factor=4.0, original_max_position_embeddings=16,
                ),
                **_ENDS,
            ),
            "biases": dict(attention_bias=True, mlp_bias=True, **_ENDS),
        },
    ),
    *several(
        "Mistral", "MistralForCausalLM", "MistralConfig",
        {
            "window of 4": dict(num_key_value_heads=2, sliding_window=4, **_ENDS),
            "no window": dict(num_key_value_heads=1, sliding_window=None, **_ENDS),
            "head width of its own": dict(
                num_key_value_heads=4, head_dim=10, sliding_window=5, **_ENDS
            ),
        },
    ),
    *several(
        "Qwen 2", "Qwen2ForCausalLM", "Qwen2Config",
        {
            "tied": dict(num_key_value_heads=2, tie_word_embeddings=True, **_ENDS),
            "untied": dict(num_key_value_heads=4, tie_word_embeddings=False, **_ENDS),
            "window in upper layers": dict(
                num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
                max_window_layers=1, **_ENDS,
            ),
        },
    ),
    *several(
        "Qwen 3", "Qwen3ForCausalLM", "Qwen3Config",
        {
            "small": dict(num_key_value_heads=2, head_dim=8, **_ENDS),
            "tied": dict(num_key_value_heads=1, head_dim=6, tie_word_embeddings=True, **_ENDS),
            "one layer": dict(
                num_key_value_heads=4, head_dim=10, num_hidden_layers=1, **_ENDS
            ),
        },
    ),
    *several(
        "Gemma 2", "Gemma2ForCausalLM", "Gemma2Config",
        {
            "small": dict(num_key_value_heads=2, head_dim=8, sliding_window=4, **_ENDS),
            "caps and scalar": dict(
                num_key_value_heads=1, head_dim=6, sliding_window=5, query_pre_attn_scalar=17,
                attn_logit_softcapping=3.0, final_logit_softcapping=2.0, **_ENDS,
            ),
            "five layers": dict(
                num_key_value_heads=4, head_dim=10, num_hidden_layers=5, sliding_window=3, **_ENDS
            ),
        },
    ),
    *several(
        "Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig",
        {
            "small": dict(num_key_value_heads=2, head_dim=8, sliding_window=4, **_ENDS),
            "seven layers": dict(
                num_key_value_heads=1, head_dim=6, num_hidden_layers=7, sliding_window=3,
                query_pre_attn_scalar=11, **_ENDS,
            ),
            "linear scaling": dict(
                num_key_value_heads=4, head_dim=8, num_hidden_layers=6, sliding_window=5,
                rope_parameters=dict(
                    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e4),
                    sliding_attention=dict(rope_type="default", rope_theta=100.0),
                ),
                **_ENDS,
            ),
        },
    ),
    *several(
        "OLMo 2", "Olmo2ForCausalLM", "Olmo2Config",
        {
            "small": dict(**_ENDS),
            "grouped queries": dict(num_key_value_heads=2, **_ENDS),
            "tied": dict(num_key_value_heads=1, tie_word_embeddings=True, **_ENDS),
        },
    ),
    *several(
        "Mixtral", "MixtralForCausalLM", "MixtralConfig",
        {
            "two of four": dict(num_key_value_heads=2, num_local_experts=4, **_ENDS),
            "one of three": dict(
                num_key_value_heads=4, num_local_experts=3, num_experts_per_tok=1, **_ENDS
            ),
            "window, three of five": dict(
                num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=3,
                sliding_window=4, **_ENDS,
            ),
        },
    ),
]  # fmt: skip
