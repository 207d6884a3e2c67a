"""A small Llama (Touvron 2023; Dubey 2024), which a few keys make a Mistral, a Qwen or an OLMo 2.

jaxformer train --config experiments/llama.py
jaxformer convert --from runs/llama --to mine                  transformers loads it
... --config.model.window=64                                   Mistral (Jiang 2023)
... --config.model.qkv_bias=True                               Qwen 2 (Yang 2024)
... --config.model.qk_norm=True                                Qwen 3 (2025)
... --config.model.norm_position=output --config.model.qk_norm=True \\
    --config.model.qk_norm_all_heads=True                      OLMo 2 (2025)

Llama 3 8B has num_layers=32, width=4096, num_heads=32, num_kv_heads=8, feed_forward=14336,
max_length=8192, rope_base=500000 and 128,256 tokens; steps of 4 to 16 million tokens at a rate of
3e-4 with 8,000 steps of warm-up.

Time: 2.0 minutes on one busy CPU core. Score, one seed: validation loss 3.86 nats a token, 1.61
bits per byte.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:4096", seq_len=128, batch_size=16),
            model=dict(
                family="decoder", num_layers=4, width=128, num_heads=4, num_kv_heads=2,
                feed_forward=352, max_length=1024, norm="rms_norm",
                norm_epsilon=1e-5, bias=False, activation="silu", gated=True, positions="rope",
                rope_base=10000.0, tie_embeddings=False, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="adamw", learning_rate=3e-3, b2=0.95, weight_decay=0.1, clip_norm=1.0,
                schedule="cosine", warmup_steps=60, final_fraction=0.1,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=100, temperature=0.7),
        )
    )  # fmt: skip
