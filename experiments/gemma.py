"""A small Gemma 3 (Gemma Team 2025): five local layers to a global one, norms around sublayers.

jaxformer train --config experiments/gemma.py
jaxformer convert --from runs/gemma --to mine                  transformers loads it
... --config.model.qk_norm=False --config.model.attention_soft_cap=50.0 \\
    --config.model.logit_soft_cap=30.0 --config.model.attention_pattern=local,global \\
    --config.model.rope_base=10000.0 --config.model.rope_local_base=0.0      Gemma 2 (2024)

Gemma 3 1B has num_layers=26, width=1152, num_heads=4, num_kv_heads=1, head_dim=256,
feed_forward=6912, window=512, max_length=32768, attention_scale=1/16 and 262,144 tokens. Its
optimizer is not published, and it learns from a teacher; here it is Llama's, without one.

Time: 2.9 minutes on 2 CPU cores that did other work too. Score, one seed: validation loss 4.042
nats a token, 1.683 bits per byte. Gemma 2 9B has an accuracy of 71.3 % on MMLU (Gemma Team 2024).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:4096", seq_len=128, batch_size=16),
            model=dict(
                family="decoder", num_layers=6, width=96, num_heads=2, num_kv_heads=1, head_dim=64,
                feed_forward=384, max_length=1024, norm_position="sandwich",
                norm="rms_norm_plus_one", norm_epsilon=1e-6, bias=False,
                activation="gelu_tanh", gated=True, qk_norm=True, attention_scale=64**-0.5,
                attention_pattern=("local",) * 5 + ("global",), window=32, positions="rope",
                rope_base=1e6, rope_local_base=10000.0, embed_scale=True, tie_embeddings=True,
                compute_dtype="bfloat16",
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
