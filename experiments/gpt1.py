"""A small GPT (Radford 2018): a decoder with its norms after each sum, then a classifier of it.

jaxformer train --config experiments/gpt1.py
jaxformer generate --workdir runs/gpt1 --prompt "def main"
jaxformer train --config experiments/gpt1.py --workdir runs/gpt1_classify \\
    --config.train.init_from=runs/gpt1 --config.data.tokenizer=runs/gpt1 \\
    --config.objective.name=classify --config.data.layout=padded --config.data.labels=package \\
    --config.data.snippet_lines=8 --config.train.steps=150       which package is this snippet from?

The paper has num_layers=12, width=768, num_heads=12, max_length=512 and 40,478 tokens, and learns
for 100 epochs of 64 rows of 512 tokens at a rate of 2.5e-4 with 2,000 steps of warm-up.

Time: 2.5 minutes on one busy CPU core, 1.3 M parameters. Score, one seed: validation loss 4.76 nats
a token, 1.98 bits per byte.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:4096", seq_len=128, batch_size=16),
            model=dict(
                family="decoder", num_layers=4, width=128, num_heads=4, max_length=128,
                norm_position="post", dropout=0.1, attention_dropout=0.1, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.999, weight_decay=0.01, clip_norm=1.0,
                schedule="cosine", warmup_steps=60, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=100, temperature=0.7),
        )
    )  # fmt: skip
