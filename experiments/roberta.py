"""A small RoBERTa (Liu 2019): BERT without sentence pairs, on full rows, hidden anew every time.

jaxformer train --config experiments/roberta.py
jaxformer convert --from runs/roberta --to mine                transformers loads it
... --config.data.source='texts/*.txt'                         on texts of yours
... --config.data.layout=packed                                rows of whole documents instead

Rows are full sentences (section 4.2): one stream of all documents, cut where a row is full. The
paper's base has num_layers=12, width=768, num_heads=12, max_length=512 and bpe:50265, and learns
for 500,000 steps of 8,192 rows at a rate of 6e-4 with 24,000 steps of warm-up.

Time: 2.2 minutes on one busy CPU core, 1.4 M parameters. Score, one seed: validation loss 6.07 nats
a hidden token, accuracy 0.082: post-norm layers have hardly begun to look about.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="bpe:4096", layout="windows", seq_len=128, batch_size=16
            ),
            model=dict(  # positions begin after the padding's id, which is 0 here
                family="encoder", num_layers=4, width=128, num_heads=4, max_length=128,
                position_offset=1, num_token_types=1, norm_epsilon=1e-5, dropout=0.1,
                attention_dropout=0.1, compute_dtype="bfloat16",
            ),
            objective=dict(name="masked_lm", rate=0.15, mask=0.8, random=0.1),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.98, eps=1e-6, weight_decay=0.01,
                clip_norm=0.0, schedule="linear", warmup_steps=60, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
        )
    )  # fmt: skip
