"""A small XLNet (Yang 2019): tokens are predicted in a random order, by a second stream.

jaxformer train --config experiments/xlnet.py
jaxformer convert --from runs/xlnet --to mine                  transformers loads it
... --config.data.source='texts/*.txt'                         on texts of yours

One of six tokens is predicted, in spans of one to five. Training has no memory of earlier rows.
The paper's base has num_layers=12, width=768, num_heads=12 and 32,000 pieces; the large one learns
for 500,000 steps of 8,192 rows of 512 tokens at a rate of 4e-4 with 40,000 steps of warm-up.

Time: 5.4 minutes on 2 CPU cores that did other work too. Score, one seed: validation loss 5.39 nats
a predicted token, accuracy 0.169. Its large size has an accuracy of 85.4 % on RACE (table 1).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="bpe:4096", layout="windows", seq_len=128, batch_size=16
            ),
            model=dict(
                family="xlnet", num_layers=4, width=128, num_heads=4, max_length=512, dropout=0.1,
                attention_dropout=0.1, compute_dtype="bfloat16",
            ),
            objective=dict(name="permutation_lm", share=6.0, max_span=5),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.999, eps=1e-6, weight_decay=0.01,
                clip_norm=1.0, schedule="linear", warmup_steps=60, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
        )
    )  # fmt: skip
