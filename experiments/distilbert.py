"""DistilBERT (Sanh 2019) on texts of yours: a published one goes on, or one begins from nothing.

jaxformer train --config experiments/distilbert.py --config.train.init_from=FOLDER \\
    --config.data.tokenizer=FOLDER --config.data.source='texts/*.txt'
jaxformer train --config experiments/distilbert.py
... --config.model.num_layers=3 --config.model.width=192 --config.model.num_heads=3     on a laptop

FOLDER holds config.json and safetensors, of a DistilBERT or with model=dict() of any published
encoder with a head for hidden tokens: more pretraining on the texts of a field (Gururangan 2020).
There is no teacher here. Time: the paper's, with its teacher, took 90 hours on 8 V100 GPUs; two
steps at reduced size were tried on a CPU. Score: the paper has 97 % of BERT's, 77.0 on GLUE.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", tokenizer="wordpiece:30522", layout="padded", seq_len=128,
                batch_size=32,
            ),
            model=dict(
                family="encoder", num_layers=6, width=768, num_heads=12, max_length=512,
                dropout=0.1, attention_dropout=0.1, compute_dtype="bfloat16",
            ),
            objective=dict(name="masked_lm", rate=0.15, mask=0.8, random=0.1),
            optimizer=dict(
                name="adamw", learning_rate=5e-4, b2=0.98, eps=1e-6, weight_decay=0.01,
                clip_norm=5.0, schedule="linear", warmup_steps=500, final_fraction=0.0,
            ),
            train=dict(steps=10_000, eval_every=1000, eval_tokens=262_144),
            checkpoint=dict(every=1000, keep=1, keep_best=0),
        )
    )  # fmt: skip
