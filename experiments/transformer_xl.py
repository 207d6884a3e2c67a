"""A small Transformer-XL (Dai 2019): it reads segment after segment, and remembers those before.

jaxformer train --config experiments/transformer_xl.py
jaxformer evaluate --workdir runs/transformer_xl --config.data.seq_len=1024 \\
    --config.data.batch_size=4                                 a longer text at a time
... --config.data.source=input.txt --config.data.tokenizer=char

A row of 512 tokens is eight segments of 64; each sees 64 tokens before it, which no gradient
enters. The memory begins empty in every row: it is not carried from one step to the next, as the
paper's is, so make rows long. Its base on WikiText-103 has num_layers=16, width=410,
num_heads=10, head_dim=41, feed_forward=2100, segments and memory of 150 and 267,735 words
(cutoffs=20000,40000,200000), and learns for 200,000 steps of 60 rows at a rate of 2.5e-4.

Time: 4.6 minutes on 2 CPU cores that did other work too. Score, one seed: validation loss 4.462
nats a token, 1.858 bits per byte; 4.458 in rows of 1,024 tokens. Its base has a perplexity of 24.0
on WikiText-103 (table 1).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:4096", seq_len=512, batch_size=4),
            model=dict(
                family="transformer_xl", num_layers=4, width=128, num_heads=4, feed_forward=512,
                segment_length=64, memory_length=64, untie_r=True, dropout=0.1,
                compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.999, weight_decay=0.0, clip_norm=0.25,
                schedule="cosine", warmup_steps=0, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=100, temperature=0.7),
        )
    )  # fmt: skip
