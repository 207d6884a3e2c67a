"""The shoot-out: ways to attend, at equal parameters, on the same three tasks and over the length.

    jaxformer compare --config experiments/attention_shootout.py --out runs/shootout

trains each of VARIANTS on each of TASKS, measures a step at each of LENGTHS, and writes table.md
and shootout.png. A way of your own is one line in VARIANTS, or one word of the command:

    jaxformer compare --config experiments/attention_shootout.py --out runs/shootout \\
        --variants softmax,mine.py:attend

ListOps (Nangia & Bowman 2018, as in the Long Range Arena, Tay 2021) and the needle, one digit in a
long filler that the first token has to find, are made by a rule. The text task tells eleven
packages of the standard library apart by their bytes; for labelled texts of your own, change its
data.source.

TIME
"""

from ml_collections import ConfigDict

VARIANTS = {
    "softmax": "softmax",
    "sliding window": "sliding_window(left=64, right=64)",
    "block local": "block_local(block=64, look_back=1)",
    "longformer": "longformer(window=128)",
    "bigbird": "bigbird(block=32)",
    "linformer": "linformer(projected=32, sharing='key_value')",
    "performer": "performer(num_features=64)",
    "linear": "linear",
    "nystromformer": "nystromformer(num_landmarks=32)",
}
TASKS = {
    "listops": ("data.source=listops:12000:510", "train.steps=500"),
    "text": ("data.source=stdlib", "data.labels=package", "data.snippet_lines=14",
             "data.tokenizer=byte", "train.steps=300"),
    "needle": ("data.source=needle:12000:510", "model.pooling=first", "train.steps=400"),
}  # fmt: skip
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MEMORY = 4 * 2**30  # bytes; a step that needs more is not run


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="listops:12000:510", labels="field", tokenizer="char", layout="padded",
                seq_len=512, batch_size=16,
            ),
            model=dict(
                family="encoder", num_layers=2, width=64, num_heads=2, max_length=512,
                norm_position="pre", positions="rope", pooling="mean", norm_epsilon=1e-5,
            ),
            objective=dict(name="classify"),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.005, schedule="cosine",
                warmup_steps=50,
            ),
            train=dict(steps=500),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
