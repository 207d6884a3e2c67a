"""English to German by the encoder-decoder of 2017 (Vaswani), beside the LSTM that it replaced.

    jaxformer train --config experiments/translate.py --config.data.source=multi30k.train.en.gz \\
        --config.data.target_source=multi30k.train.de.gz \\
        --config.data.validation_source=multi30k.val.en.gz \\
        --config.data.validation_target_source=multi30k.val.de.gz
    jaxformer evaluate --workdir runs/translate --config.data.validation_source=TEST.en.gz \\
        --config.data.validation_target_source=TEST.de.gz --out translated.jsonl
    jaxformer generate --workdir runs/translate --prompt "A dog runs in the snow."

Time: 9.7 minutes on 2 CPU cores, for 7.6 M parameters and 5.5 epochs of Multi30k (Elliott 2016;
29,000 pairs). Score, one seed: BLEU 32.6, chrF 57.6 on its test of 2016 (beam of 4, sacrebleu). The
LSTM of experiments/translate_lstm.py gets 18.3 with as many parameters in as much time: it reads
half as many sentences, and learns less from each. Both with the first settings tried.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="multi30k.train.en.gz", target_source="multi30k.train.de.gz",
                validation_source="multi30k.val.en.gz",
                validation_target_source="multi30k.val.de.gz",
                tokenizer="bpe:8000", layout="seq2seq_packed", source_len=64, seq_len=64,
                batch_size=32,
            ),
            model=dict(
                family="encoder_decoder", num_layers=3, width=256, num_heads=4, max_length=256,
                norm_position="pre", dropout=0.1, compute_dtype="bfloat16",
            ),
            objective=dict(name="seq2seq", label_smoothing=0.1),
            optimizer=dict(
                name="adamw", learning_rate=1e-3, weight_decay=0.01, b2=0.98,
                schedule="linear", warmup_steps=200, final_fraction=0.0, clip_norm=1.0,
            ),
            train=dict(steps=1250, eval_every=250, eval_tokens=16384),
            generate=dict(
                prompts=("A man is riding a bicycle.",), max_new_tokens=64, num_beams=4,
                temperature=0.0,
            ),
            checkpoint=dict(every=250, keep=1, keep_best=0),
        )
    )  # fmt: skip
