"""Which words are names? An encoder fine-tuned on CoNLL-2003 (Tjong Kim Sang 2003), a tag a word.

    jaxformer train --config experiments/tagging.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=eng.train \\
        --config.data.validation_source=eng.testa
    jaxformer evaluate --workdir runs/tagging

FOLDER holds config.json and safetensors of any published encoder, best a cased one. A line of the
files is a word, …, its tag; an empty line ends a sentence. Rows of .jsonl with the lists tokens and
tags do as well. Training shows the accuracy of words (each at its first piece); evaluate counts
whole names, too. Time and score: not trained here, checked by two steps (8 s) on a CPU; BERT base
has an F1 of 96.4 % in names on eng.testa (Devlin 2019, table 7).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="eng.train", validation_source="eng.testa", labels="tags", layout="padded",
                seq_len=128, batch_size=32, tokenizer="bert-base-cased",
            ),
            model=dict(dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="tag"),
            optimizer=dict(
                name="adamw", learning_rate=5e-5, weight_decay=0.01, b2=0.999, schedule="linear",
                warmup_steps=130, final_fraction=0.0, clip_norm=1.0,
            ),
            train=dict(steps=1317, eval_every=439, init_from="bert-base-cased"),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
