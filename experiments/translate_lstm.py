"""English to German by an LSTM with attention (Luong 2015): what the Transformer replaced.

    jaxformer train --config experiments/translate_lstm.py --config.data.source=TRAIN.en.gz ...

and so on with the files and commands of experiments/translate.py. Two bidirectional layers read,
two write; attention sees all steps at once (no input feeding, which costs 40 % more a step).

Time: 9.5 minutes on 2 CPU cores, for 7.6 M parameters and 2.6 epochs of Multi30k. Score, one seed:
BLEU 18.3, chrF 41.7 on its test of 2016; the Transformer gets 32.6 in the same time.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="multi30k.train.en.gz", target_source="multi30k.train.de.gz",
                validation_source="multi30k.val.en.gz",
                validation_target_source="multi30k.val.de.gz",
                tokenizer="bpe:8000", layout="seq2seq", source_len=32, seq_len=32,
                batch_size=64,
            ),
            model=dict(
                family="recurrent", num_layers=2, width=382, max_length=256, input_feeding=False,
                dropout=0.2, compute_dtype="bfloat16",
            ),
            objective=dict(name="seq2seq", label_smoothing=0.1),
            optimizer=dict(
                name="adamw", learning_rate=2e-3, weight_decay=0.01, b2=0.98,
                schedule="linear", warmup_steps=200, final_fraction=0.0, clip_norm=1.0,
            ),
            train=dict(steps=1200, eval_every=240, eval_tokens=16384),
            generate=dict(
                prompts=("A man is riding a bicycle.",), max_new_tokens=64, num_beams=4,
                temperature=0.0,
            ),
            checkpoint=dict(every=240, keep=1, keep_best=0),
        )
    )  # fmt: skip
