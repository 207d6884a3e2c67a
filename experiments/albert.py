"""A small ALBERT (Lan 2020): one layer's parameters for all, a narrow embedding, sentence order.

jaxformer train --config experiments/albert.py
jaxformer convert --from runs/albert --to mine                 transformers loads it
... --config.data.source='wiki/*.txt'                          on texts of yours

An empty line ends a document; lines and full stops end sentences. The paper's base has
num_layers=12, width=768, num_heads=12, max_length=512 and 30,000 pieces, hides n-grams of up to
three words (single tokens here), and learns for 125,000 steps of 4,096 rows of 512 tokens, by LAMB
at a rate of 0.00176; its large sizes have dropout=0.

Time: 2.6 minutes on one busy CPU core, 0.8 M parameters. Score, one seed: validation loss 6.45
(5.76 a hidden token, 0.69 a pair: the order of sentences is not learnt so soon).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="wordpiece:4096", layout="sentence_pairs",
                pair_task="order", seq_len=128, batch_size=16,
            ),
            model=dict(
                family="encoder", num_layers=4, width=192, num_heads=4, max_length=128,
                embedding_size=64, share_layers=True, num_token_types=2, pooler=True,
                activation="gelu_tanh", masked_activation="gelu_tanh", dropout=0.1,
                compute_dtype="bfloat16",
            ),
            objective=dict(name="bert_pretraining", rate=0.15, mask=0.8, random=0.1),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, b2=0.999, eps=1e-6, weight_decay=0.01,
                clip_norm=1.0, schedule="linear", warmup_steps=60, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=200, eval_tokens=65536),
            checkpoint=dict(every=200, keep=1, keep_best=0),
        )
    )  # fmt: skip
