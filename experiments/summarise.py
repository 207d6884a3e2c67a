"""One sentence of a long text: BART (Lewis 2020) fine-tuned on XSum (Narayan 2018).

    jaxformer train --config experiments/summarise.py --config.train.init_from=FOLDER \\
        --config.data.tokenizer=FOLDER --config.data.source=train.jsonl
    jaxformer evaluate --workdir runs/summarise --metrics rouge --out summaries.jsonl
    jaxformer evaluate --from FOLDER --config experiments/summarise.py --metrics rouge \\
        --config.data.validation_source=test.jsonl             of one that summarises already
    ... --config.data.source=hf:EdinburghNLP/xsum                  from the hub
    ... --config.data.source_prefix='summarize: '                  for a T5

FOLDER holds config.json and safetensors of a published BART or T5. A row of the file has the fields
document and summary (CNN/DailyMail: article and highlights, seq_len=142, num_beams=4,
length_penalty=2.0, min_new_tokens=55). Time and score: not trained here, checked by two steps (8 s)
on a CPU. BART large has ROUGE-1, 2 and L of 45.14, 22.27 and 37.25 % on XSum's test set (table 3).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="train.jsonl", text_field="document", target_field="summary",
                layout="seq2seq_packed", source_len=1024, seq_len=62, batch_size=32,
                validation_fraction=0.02, tokenizer="bart-large",
            ),
            model=dict(dropout=0.1, attention_dropout=0.1, compute_dtype="bfloat16"),
            objective=dict(name="seq2seq", label_smoothing=0.1),
            optimizer=dict(
                name="adamw", learning_rate=3e-5, b2=0.999, weight_decay=0.01, clip_norm=0.1,
                schedule="linear", warmup_steps=500, final_fraction=0.0,
            ),
            train=dict(steps=15_000, eval_every=1000, eval_tokens=65536, init_from="bart-large"),
            checkpoint=dict(every=1000, keep=1, keep_best=1),
            generate=dict(
                max_new_tokens=60, min_new_tokens=10, num_beams=6, length_penalty=1.0,
                no_repeat_ngram=3, early_stopping=True, temperature=0.0,
            ),
        )
    )  # fmt: skip
