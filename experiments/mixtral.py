"""A small Mixtral (Jiang 2024): eight experts a layer, of which each token is given to two.

jaxformer train --config experiments/mixtral.py
jaxformer convert --from runs/mixtral --to mine                transformers loads it

No token is dropped, and no loss asks the router to use all experts alike (the paper names none).
Mixtral 8x7B has num_layers=32, width=4096, num_heads=32, num_kv_heads=8, feed_forward=14336,
max_length=32768, rope_base=1e6 and 32,000 tokens. How it was trained is not published; here as
Llama was.

Time: 12 minutes on 2 CPU cores that did other work too; on a CPU the grouped product costs as much
as all experts for all tokens. Score, one seed: validation loss 3.860 nats a token, 1.608 bits per
byte. Mixtral 8x7B has an accuracy of 70.6 % on MMLU (Jiang 2024, table 2).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:4096", seq_len=128, batch_size=16),
            model=dict(
                family="decoder", num_layers=4, width=128, num_heads=4, num_kv_heads=2,
                feed_forward=224, num_experts=8, experts_per_token=2, max_length=1024,
                norm="rms_norm", norm_epsilon=1e-5, bias=False, activation="silu",
                gated=True, positions="rope", rope_base=1e6, tie_embeddings=False,
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
