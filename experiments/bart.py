"""A small BART (Lewis 2020): spans become one mask each, sentences change places; mend the text.

jaxformer train --config experiments/bart.py
jaxformer convert --from runs/bart --to mine                   transformers loads it
... --config.data.source='texts/*.txt'                         on texts of yours

Then experiments/summarise.py with train.init_from=mine, data.tokenizer=mine, data.source_len=160.
The paper's base has num_layers=6, width=768, num_heads=12, max_length=1024 and 50,265 tokens, its
large 12 of 1024; that one learns for 500,000 steps of 8,000 rows. data.layout=padded gives each
document rows of its own.

Time: 3.9 minutes on one busy CPU core, 2.0 M parameters. Score, one seed: validation loss 4.76 nats
a token, 1.98 bits per byte.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="bpe:4096", layout="windows", seq_len=128, batch_size=16
            ),
            model=dict(
                family="encoder_decoder", num_layers=3, width=128, num_heads=4, max_length=160,
                norm_position="post", activation="gelu", positions="learned", position_offset=2,
                embed_norm=True, embed_scale=False, head_bias=True, init="normal", dropout=0.1,
                compute_dtype="bfloat16",
            ),
            objective=dict(name="infilling", rate=0.3, mean_span=3.0, permute=True),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.98, eps=1e-6, weight_decay=0.01,
                clip_norm=1.0, schedule="linear", warmup_steps=60, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
        )
    )  # fmt: skip
