"""A small Memorizing Transformer (Wu 2022): segments of 64, and a search of all those before.

jaxformer train --config experiments/memorizing.py
jaxformer evaluate --workdir runs/memorizing --config.model.memory_size=0    its memory switched off
jaxformer train --config experiments/memorizing.py --config.model.memory_size=0 \\
    --workdir runs/no_memory                                                 its base

A row of 2,048 tokens holds pieces of files; each token sees its segment of 64, and in the third of
four layers also the 32 best of all earlier tokens of its file in the row, which no gradient enters.
The paper's model ("wu2022" in models/memorizing.py) has 12 layers of width 1,024, the memory in the
9th, segments of 512 and positions="t5"; its memory goes on from step to step, here it is the row's.

Time: 30 minutes on 2 CPU cores that trained its base at the same time. Score, one seed, all of the
held-out files: perplexity 19.07 (loss 2.948 nats a token), its base, trained alike, 20.54 (3.022):
7 % less; 20.91 (3.040) with its memory switched off, so it is used. In rows of 8,192 tokens, four
times those of training, 19.22 and 20.52. The memory begins to pay after 1.5 million tokens: after
500 steps both stand at a validation loss of 3.57.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="bpe:2048", layout="packed", seq_len=2048, batch_size=1
            ),
            model=dict(
                family="memorizing", num_layers=4, width=160, num_heads=4, segment_length=64,
                memory_size=65536, memory_top_k=32, positions="rope",
                norm="rms_norm", norm_scale=False, norm_epsilon=1e-6, embed_norm=True,
                qk_norm=True, qk_scale=2.0, short_conv=4, activation="relu2", bias=False,
                tie_embeddings=False, init="fan_in", zero_init_output=True,
                compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.01, rates=("head/.*:0.4",),
                eps=1e-10, weight_decay=0.0, schedule="linear", warmup_steps=0, final_fraction=0.0,
            ),
            train=dict(steps=2000, eval_every=250, eval_tokens=65536),
            checkpoint=dict(every=500, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=100, temperature=0.7),
        )
    )  # fmt: skip
