"""Published sizes of causal language models, for `decoder.Config(**decoder.SIZES["llama3_8b"])`.

Sources: each family's paper, and its checkpoints' config.json where the paper leaves a key out.
"""

from __future__ import annotations

from typing import Any

Size = dict[str, Any]


def _size(shared: Size, layers: int, width: int, heads: int, kv: int, hidden: int, **more: Any):
    shape = dict(num_layers=layers, width=width, num_heads=heads, feed_forward=hidden)
    return {**shared, **shape, **({"num_kv_heads": kv} if kv != heads else {}), **more}


_ROPE: Size = dict(
    norm="rms_norm", bias=False, activation="silu", gated=True, positions="rope",
    tie_embeddings=False,
)  # fmt: skip
# Radford 2018, section 4.1; Radford 2019, table 2.
_GPT2: Size = dict(vocab_size=50257, max_length=1024)
_GPT: dict[str, Size] = {
    "gpt1": dict(
        vocab_size=40478, max_length=512, num_layers=12, width=768, num_heads=12,
        norm_position="post",
    ),
    "gpt2": dict(_GPT2, num_layers=12, width=768, num_heads=12),
    "gpt2_medium": dict(_GPT2, num_layers=24, width=1024, num_heads=16),
    "gpt2_large": dict(_GPT2, num_layers=36, width=1280, num_heads=20),
    "gpt2_xl": dict(_GPT2, num_layers=48, width=1600, num_heads=25),
}  # fmt: skip
# Touvron 2023 (Llama 2); Grattafiori 2024 (Llama 3), table 3, 3.1's and 3.2's long contexts.
_LLAMA2 = dict(_ROPE, vocab_size=32000, max_length=4096)
_LLAMA3 = dict(_ROPE, vocab_size=128256, max_length=8192, rope_base=500_000.0)
_LONG = dict(
    _LLAMA3, max_length=131_072, rope_scaling="llama3", rope_scaling_factor=8.0,
    rope_original_length=8192,
)  # fmt: skip
_SMALL = dict(_LONG, rope_scaling_factor=32.0, tie_embeddings=True)
_LLAMA: dict[str, Size] = {
    "llama2_7b": _size(_LLAMA2, 32, 4096, 32, 32, 11008),
    "llama2_13b": _size(_LLAMA2, 40, 5120, 40, 40, 13824),
    "llama2_70b": _size(_LLAMA2, 80, 8192, 64, 8, 28672),
    "llama3_8b": _size(_LLAMA3, 32, 4096, 32, 8, 14336),
    "llama3_70b": _size(_LLAMA3, 80, 8192, 64, 8, 28672),
    "llama3_1_8b": _size(_LONG, 32, 4096, 32, 8, 14336),
    "llama3_1_70b": _size(_LONG, 80, 8192, 64, 8, 28672),
    "llama3_2_1b": _size(_SMALL, 16, 2048, 32, 8, 8192),
    "llama3_2_3b": _size(_SMALL, 28, 3072, 24, 8, 8192),
}
# Jiang 2023, table 1, and its version 0.3, without a window; Jiang 2024, table 1.
_MISTRAL = dict(_ROPE, max_length=32768)
_MIXTRAL = dict(_MISTRAL, num_experts=8, experts_per_token=2, rope_base=1e6)
_MISTRALS: dict[str, Size] = {
    "mistral_7b": _size(_MISTRAL, 32, 4096, 32, 8, 14336, vocab_size=32000, window=4096),
    "mistral_7b_v0_3": _size(_MISTRAL, 32, 4096, 32, 8, 14336, vocab_size=32768, rope_base=1e6),
    "mixtral_8x7b": _size(_MIXTRAL, 32, 4096, 32, 8, 14336, vocab_size=32000),
    "mixtral_8x22b": _size(_MIXTRAL, 56, 6144, 48, 8, 16384, vocab_size=32768, max_length=65536),
}
# Yang 2024, table 1 (2 and 2.5 have the same sizes; 2.5's contexts); Yang 2025, table 1.
_QWEN2 = dict(
    _ROPE, vocab_size=151_936, max_length=32768, norm_epsilon=1e-6, qkv_bias=True, rope_base=1e6,
    tie_embeddings=True,
)  # fmt: skip
_QWEN3 = dict(_QWEN2, max_length=40960, qkv_bias=False, qk_norm=True, head_dim=128)
_QWEN: dict[str, Size] = {
    "qwen2_0_5b": _size(_QWEN2, 24, 896, 14, 2, 4864),
    "qwen2_1_5b": _size(_QWEN2, 28, 1536, 12, 2, 8960),
    "qwen2_7b": _size(_QWEN2, 28, 3584, 28, 4, 18944, vocab_size=152_064, tie_embeddings=False),
    "qwen3_0_6b": _size(_QWEN3, 28, 1024, 16, 8, 3072),
    "qwen3_1_7b": _size(_QWEN3, 28, 2048, 16, 8, 6144),
    "qwen3_4b": _size(_QWEN3, 36, 2560, 32, 8, 9728),
    "qwen3_8b": _size(_QWEN3, 36, 4096, 32, 8, 12288, tie_embeddings=False),
    "qwen3_14b": _size(_QWEN3, 40, 5120, 40, 8, 17408, tie_embeddings=False),
    "qwen3_32b": _size(_QWEN3, 64, 5120, 64, 8, 25600, tie_embeddings=False),
}
# Gemma Team 2024, table 1; Gemma Team 2025, table 1 (its sizes that read text alone).
_GEMMA = dict(
    norm_position="sandwich", norm="rms_norm_plus_one", norm_epsilon=1e-6, bias=False,
    activation="gelu_tanh", gated=True, positions="rope", embed_scale=True, head_dim=256,
    attention_scale=256**-0.5,
)  # fmt: skip
_GEMMA2 = dict(
    _GEMMA, vocab_size=256_000, max_length=8192, attention_soft_cap=50.0, logit_soft_cap=30.0,
    attention_pattern=("local", "global"), window=4096,
)  # fmt: skip
_GEMMA3 = dict(
    _GEMMA, vocab_size=262_144, max_length=32768, qk_norm=True, rope_base=1e6,
    rope_local_base=10000.0, attention_pattern=("local",) * 5 + ("global",), window=512,
)  # fmt: skip
_GEMMAS: dict[str, Size] = {
    "gemma2_2b": _size(_GEMMA2, 26, 2304, 8, 4, 9216),
    "gemma2_9b": _size(_GEMMA2, 42, 3584, 16, 8, 14336),
    "gemma2_27b": _size(_GEMMA2, 46, 4608, 32, 16, 36864, head_dim=128, attention_scale=144**-0.5),
    "gemma3_270m": _size(_GEMMA3, 18, 640, 4, 1, 2048),
    "gemma3_1b": _size(_GEMMA3, 26, 1152, 4, 1, 6912),
}
# OLMo Team 2025, table 1.
_OLMO2 = dict(
    _ROPE, vocab_size=100_352, max_length=4096, norm_position="output", norm_epsilon=1e-6,
    qk_norm=True, qk_norm_all_heads=True, rope_base=500_000.0,
)  # fmt: skip
_OLMO: dict[str, Size] = {
    "olmo2_1b": _size(_OLMO2, 16, 2048, 16, 16, 8192),
    "olmo2_7b": _size(_OLMO2, 32, 4096, 32, 32, 11008),
    "olmo2_13b": _size(_OLMO2, 40, 5120, 40, 40, 13824),
    "olmo2_32b": _size(_OLMO2, 64, 5120, 40, 8, 27648),
}

SIZES: dict[str, Size] = {**_GPT, **_LLAMA, **_MISTRALS, **_QWEN, **_GEMMAS, **_OLMO}
