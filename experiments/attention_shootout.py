"""The shoot-out: ways to attend, at equal parameters, on the same three tasks and over the length.

    jaxformer compare --config experiments/attention_shootout.py --out runs/shootout

trains each of VARIANTS on each of TASKS, measures a step at each of LENGTHS, writes table.md and
shootout.png. Your own way is a line in VARIANTS, or a word: --variants softmax,mine.py:attend.

ListOps (Nangia & Bowman 2018, as in the Long Range Arena, Tay 2021) and the needle, one digit in a
long filler that the first token has to find, are made by a rule; the text task tells eleven
packages of the standard library apart by their bytes (another text: data.source).

Time: 42 minutes on 2 CPU cores. Score, one seed: accuracy 0.18 to 0.21 on ListOps but for blocks
(0.33) and Linformer (0.35), where the largest class is 0.18; 0.38 (Linformer) to 0.52 on the text;
the needle is found always by softmax, Longformer, BigBird and Nystromformer, in the tokens near by
a window and blocks (0.18), never by Linformer, Performer and linear attention after 400 steps.
Beyond 2,048 tokens softmax is computed by chunks.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "softmax": "softmax",
    "sliding window": "sliding_window(left=64, right=64)",
    "block local": "block_local(block=64, look_back=1)",
    "longformer": "longformer(window=128, global_tokens='first')",
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
            optimizer=dict(name="muon", learning_rate=0.02, adam_learning_rate=0.005,
                           schedule="cosine", warmup_steps=50),
            train=dict(steps=500),
            checkpoint=dict(every=0, keep=1, keep_best=0),
        )
    )  # fmt: skip
