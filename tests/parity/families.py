"""The published configurations of the ledger, at least three a family, all small and odd."""

from __future__ import annotations

from typing import Any

from tests.parity.case import Case, quiet, randomise

V = 71
# Names that most configurations of transformers share; odd sizes, so that no axis is mistaken.
SMALL = dict(
    vocab_size=V, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40
)


def case(
    family: str, name: str, cls: str, config: str, given: dict[str, Any], *, untie: bool = False,
    **more: Any,
) -> Case:  # fmt: skip
    """Returns the case of transformers' class `cls` with its `config` made of `given`.

    `untie` gives the head a table of its own, where the class ties it whatever the config says.
    """

    def make() -> Any:
        import transformers

        with quiet():
            made = getattr(transformers, config)(**{"pad_token_id": 0, **given})
            made._attn_implementation = "eager"
            model = getattr(transformers, cls)(made)
            if untie:
                table = model.lm_head.weight.detach().clone()
                model.lm_head.weight = type(model.lm_head.weight)(table)
            return randomise(model)

    return Case(family, name, make, **more)


def several(
    family: str, cls: str, config: str, variants: dict[str, Any], **more: Any
) -> list[Case]:
    """Returns one case for each variant: its name and what it changes of SMALL."""
    return [
        case(family, name, cls, config, {**SMALL, **changes}, **more)
        for name, changes in variants.items()
    ]


ENCODERS = [
    *several(
        "BERT",
        "BertForMaskedLM",
        "BertConfig",
        {
            "small": {},
            "two heads, one layer": dict(num_attention_heads=2, num_hidden_layers=1),
            "relu, three types": dict(hidden_act="relu", type_vocab_size=3),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    case(
        "BERT", "classifier of 5", "BertForSequenceClassification", "BertConfig",
        {**SMALL, "num_labels": 5}, kind="pooled", decodes=False, token_types=2,
    ),
    *several(
        "RoBERTa",
        "RobertaForMaskedLM",
        "RobertaConfig",
        {
            "small": dict(max_position_embeddings=40, pad_token_id=1),
            "untied": dict(max_position_embeddings=40, tie_word_embeddings=False, pad_token_id=1),
            "three heads, odd width": dict(
                hidden_size=21, num_attention_heads=3, max_position_embeddings=33, pad_token_id=1
            ),
        },
        kind="masked", decodes=False, pad_id=1,
    ),
    case(
        "RoBERTa", "classifier of 3", "RobertaForSequenceClassification", "RobertaConfig",
        {**SMALL, "num_labels": 3, "pad_token_id": 1}, kind="pooled", decodes=False, pad_id=1,
    ),
    *several(
        "ALBERT",
        "AlbertForMaskedLM",
        "AlbertConfig",
        {
            "small": dict(embedding_size=16),
            "embedding as wide": dict(embedding_size=24, num_hidden_layers=2),
            "gelu, two heads": dict(embedding_size=10, hidden_act="gelu", num_attention_heads=2),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    *(
        case("DistilBERT", name, cls, "DistilBertConfig",
             dict(vocab_size=V, dim=24, n_layers=3, n_heads=4, hidden_dim=40) | changes,
             kind=kind, decodes=False)
        for name, cls, kind, changes in (
            ("small", "DistilBertForMaskedLM", "masked", {}),
            ("relu, odd heads", "DistilBertForMaskedLM", "masked",
             dict(activation="relu", n_heads=3)),
            ("classifier of 2", "DistilBertForSequenceClassification", "pooled", {}),
        )
    ),
    *several(
        "ELECTRA",
        "ElectraForMaskedLM",
        "ElectraConfig",
        {
            "generator": dict(embedding_size=16),
            "generator, embedding as wide": dict(embedding_size=24),
            "generator, untied": dict(embedding_size=16, tie_word_embeddings=False),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    *several(
        "ELECTRA",
        "ElectraForPreTraining",
        "ElectraConfig",
        {"discriminator": dict(embedding_size=16), "discriminator, relu": dict(hidden_act="relu")},
        kind="replaced", decodes=False, token_types=2,
    ),
    *several(
        "ModernBERT",
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            "small": dict(local_attention=6),
            "every second global": dict(
                local_attention=4, num_hidden_layers=5, global_attn_every_n_layers=2
            ),
            "biases": dict(
                local_attention=6, attention_bias=True, mlp_bias=True, norm_bias=True,
                classifier_bias=True,
            ),
        },
        kind="masked", decodes=False,
        quirk="its first layer has no attention norm",
    ),
]  # fmt: skip

_GPT = dict(vocab_size=V, n_positions=40, n_embd=24, n_layer=3, n_head=4)
_ENDS = dict(bos_token_id=None, eos_token_id=None)
DECODERS = [
    *(
        case("GPT-1", name, "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {**_GPT, **changes},
             left_padding=True, decodes=False,
             quirk="takes no mask in generate; its 'gelu' is the tanh form")
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

_PAIR = dict(
    vocab_size=V, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=40,
    eos_token_id=2, bos_token_id=None, forced_eos_token_id=None, decoder_start_token_id=0,
)  # fmt: skip
_T5 = dict(
    vocab_size=V, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip
SEQ2SEQ = [
    *(
        case("Marian", name, "MarianMTModel", "MarianConfig",
             {**_PAIR, "scale_embedding": True, "activation_function": "swish", **changes},
             kind="seq2seq", eos_id=2)
        for name, changes in (
            ("small", {}),
            ("deeper encoder, two heads", dict(
                encoder_layers=3, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2)),
            ("own vocabularies", dict(
                share_encoder_decoder_embeddings=False, decoder_vocab_size=53,
                scale_embedding=False, activation_function="gelu")),
        )
    ),
    *(
        case("BART", name, "BartForConditionalGeneration", "BartConfig",
             {**_PAIR, "pad_token_id": 1, "decoder_start_token_id": 3, **changes},
             kind="seq2seq", pad_id=1, eos_id=2)
        for name, changes in (
            ("small", {}),
            ("scaled embedding, deeper decoder", dict(scale_embedding=True, decoder_layers=3)),
            ("relu, three heads", dict(
                activation_function="relu", encoder_attention_heads=3, decoder_attention_heads=3)),
        )
    ),
    *(
        case(family, name, "T5ForConditionalGeneration", "T5Config", {**_T5, **changes},
             kind="seq2seq", eos_id=1, untie=family == "T5 1.1",
             quirk="ties the head at its making" if family == "T5 1.1" else
             "cannot generate with more decoder than encoder layers")
        for family, name, changes in (
            ("T5", "small", {}),
            ("T5", "wide heads, few buckets", dict(
                d_kv=10, relative_attention_num_buckets=8, relative_attention_max_distance=10)),
            ("T5", "shallower decoder", dict(num_decoder_layers=1, num_heads=3, d_kv=8)),
            ("T5 1.1", "gated, untied", dict(
                feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
            ("T5 1.1", "three heads", dict(
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_heads=3)),
            ("T5 1.1", "gated silu, one layer", dict(
                feed_forward_proj="gated-silu", tie_word_embeddings=False, num_layers=1,
                num_decoder_layers=1)),
        )
    ),
]  # fmt: skip

_XLNET = dict(vocab_size=V, d_model=24, n_layer=3, n_head=4, d_inner=40)
OTHERS = [
    case("XLNet", name, "XLNetLMHeadModel", "XLNetConfig", {**_XLNET, **changes},
         kind="masked", decodes=False, token_types=2,
         quirk="with attn_type=uni it fails on an attention mask")
    for name, changes in (
        ("small", {}),
        ("relu, two layers", dict(ff_activation="relu", n_layer=2)),
        ("distances clamped, two heads", dict(clamp_len=4, n_head=2, d_head=12)),
    )
]  # fmt: skip

CASES = [*ENCODERS, *DECODERS, *SEQ2SEQ, *OTHERS]
