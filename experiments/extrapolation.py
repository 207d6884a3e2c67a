"""Train short, test long (Press 2022): which scheme of positions stands texts 16 times as long?

    for scheme in rope alibi t5 sinusoidal none; do
        jaxformer train --config experiments/extrapolation.py --workdir runs/$scheme \\
            --config.model.positions=$scheme
    done
    jaxformer train --config experiments/extrapolation.py --workdir runs/window \\
        --config.model.window=32
    jaxformer extrapolate runs/rope runs/alibi runs/t5 runs/sinusoidal runs/none runs/window \\
        --lengths 64,128,256,512,1024 --out extrapolation.png

The run with RoPE is read in four ways: as it is, and stretched by linear interpolation (Chen
2023), by "NTK-aware" bases and by YaRN (Peng 2024), each to the length in question. The window
sees 32 tokens in each layer whatever the length, with RoPE.

Time: 1.1 to 1.7 minutes a run on 2 CPU cores that did other work too. Score, one seed: validation
loss in nats a token, in windows of 64 tokens and of 1,024 (a perplexity of 30.4 is 3.414): RoPE
3.414 and 3.916, with YaRN 3.679, with NTK 3.866, by interpolation 4.003; ALiBi 3.430 and 3.380;
T5's buckets 3.378 and 3.985; sinusoids 3.526 and 4.233; no positions 3.575 and 3.904; the window
with RoPE 3.398 and 3.336. Only ALiBi and the window gain from the longer text.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(source="stdlib", tokenizer="bpe:2048", seq_len=64, batch_size=16),
            model=dict(
                family="decoder", num_layers=4, width=128, num_heads=4, positions="rope",
                max_length=64, norm="rms_norm", norm_scale=False, embed_norm=True, qk_norm=True,
                activation="relu2", bias=False, tie_embeddings=False, init="fan_in",
                zero_init_output=True, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.01, rates=("head/.*:0.4",),
                eps=1e-10, weight_decay=0.0, schedule="linear", warmup_steps=0, final_fraction=0.0,
            ),
            train=dict(steps=800, eval_every=400, eval_tokens=16384),
            checkpoint=dict(every=0, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=30, temperature=0.7),
        )
    )  # fmt: skip
