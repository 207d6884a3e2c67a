"""How alike are these two sentences, from 0 to 5? An encoder fine-tuned on STS-B (Cer 2017).

    jaxformer train --config experiments/sts.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=STS-B/train.tsv \\
        --config.data.validation_source=STS-B/dev.tsv
    jaxformer evaluate --workdir runs/sts --out answers.jsonl       Pearson and Spearman

FOLDER holds config.json and safetensors of any published encoder. The files are GLUE's (Wang
2018): a header, and columns of which sentence1, sentence2 and score count; 5,749 pairs to learn
from, 1,500 to test on. Time and score: not trained here, checked by two steps (8 s) on a CPU; BERT
base has a Spearman correlation of 85.8 % on the test set (Devlin 2019, table 1).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="train.tsv", validation_source="dev.tsv", text_field="sentence1",
                text_pair_field="sentence2", labels="value", label_field="score", layout="padded",
                seq_len=96, batch_size=32, tokenizer="minilm",
            ),
            model=dict(pooling="mean", dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="classify"),
            optimizer=dict(
                name="adamw", learning_rate=1e-4, weight_decay=0.01, b2=0.98, schedule="linear",
                warmup_steps=60, final_fraction=0.0, clip_norm=1.0, layer_decay=0.9,
            ),
            train=dict(steps=720, eval_every=180, init_from="minilm"),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
