"""A small GPT on the source code of Python's standard library: no download, four minutes.

launch/local.sh train experiments/quickstart.py
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:2048", seq_len=128, batch_size=8),
            model=dict(
                family="decoder", num_layers=4, width=160, num_heads=5, positions="rope",
                norm="rms_norm", qk_norm=True, bias=False, activation="relu2", embed_norm=True,
                zero_init_output=True, tie_embeddings=False, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.004, weight_decay=0.0,
                schedule="linear", warmup_steps=20, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=32768),
            checkpoint=dict(every=200, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=120, temperature=0.7),
        )
    )  # fmt: skip
