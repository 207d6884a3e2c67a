"""A small T5 1.1 (Raffel 2020; Shazeer 2020): spans are taken out of a text, the target has them.

jaxformer train --config experiments/t5.py
jaxformer convert --from runs/t5 --to mine                     transformers loads it
... --config.data.source='texts/*.txt'                         on texts of yours

Rows of 141 tokens make sources of 128 and targets of 29, as the paper's 568 make 512 and 114. T5
1.1 small has num_layers=8, width=512, num_heads=6, head_dim=64, feed_forward=1024, max_length=568
and 32,000 pieces, and learns for 1,000,000 steps of 2,048 rows by Adafactor at a rate of 0.01 for
10,000 steps, then of 1 / sqrt(step).

Time: 1.8 minutes on one busy CPU core, 2.3 M parameters. Score, one seed: validation loss 4.25 nats
a token of the targets, accuracy 0.307.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="bpe:4096", extra_ids=100, layout="windows",
                seq_len=141, batch_size=16,
            ),
            model=dict(  # a target begins with padding, whose id is 0
                family="encoder_decoder", num_layers=3, width=128, num_heads=4, feed_forward=256,
                max_length=141, start_id=0, norm_position="pre", norm="rms_norm",
                norm_epsilon=1e-6, bias=False, activation="gelu_tanh", gated=True, positions="t5",
                attention_scale=1.0, embed_scale=False, tie_embeddings=False, init="normal",
                compute_dtype="bfloat16",
            ),
            objective=dict(name="span_corruption", rate=0.15, mean_span=3.0, z_loss=1e-4),
            optimizer=dict(
                name="adafactor", learning_rate=0.03, weight_decay=0.0, clip_norm=0.0,
                schedule="inverse_sqrt", warmup_steps=100,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
        )
    )  # fmt: skip
