"""A small BERT (Devlin 2019), pretrained as it was: hidden words, and does b really follow a?

jaxformer train --config experiments/bert_pretraining.py
jaxformer convert --from runs/bert_pretraining --to mine       transformers loads it
... --config.data.source='wiki/*.txt'                          on texts of yours

An empty line ends a document; lines and full stops end sentences. data.pair_task=order asks whether
two sentences are in order, as ALBERT does (albert.py). The paper's base has num_layers=12,
width=768, num_heads=12, max_length=512 and wordpiece:30522, and learns for 1,000,000 steps of 256
rows, of 128 tokens and at last of 512, at a rate of 1e-4 with 10,000 steps of warm-up.

Time: 2.2 minutes on one busy CPU core, 1.4 M parameters. Score, one seed: validation loss 6.20
(5.55 a hidden token, 0.65 a pair; accuracy of pairs 0.62).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="wordpiece:4096", layout="sentence_pairs",
                pair_task="next", seq_len=128, batch_size=16,
            ),
            model=dict(
                family="encoder", num_layers=4, width=128, num_heads=4, max_length=128,
                num_token_types=2, pooler=True, dropout=0.1, attention_dropout=0.1,
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
