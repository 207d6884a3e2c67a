"""A small RETRO (Borgeaud 2022) on Python's standard library: each chunk reads what others wrote.

jaxformer train --config experiments/retro.py
jaxformer train --config experiments/retro.py --config.data.retrieval= \\
    --workdir runs/retro_off                                   the same model without neighbours
jaxformer evaluate --workdir runs/retro --config.data.retrieval_overlap=0.125
... --config.data.retrieval=FOLDER     vectors of a published encoder (MiniLM) instead of tf-idf

Each chunk of 64 tokens comes with 2 neighbours of 128 tokens from other files of the training
split. At this size it does not learn to use them: validation loss is 3.923 nats a token with
neighbours and 3.923 without (65,536 tokens afterwards: 3.970 and 3.957; 3.970 if the trained model
is shown none), and after 3,000 steps 2.947 and 2.878: what it reads disturbs. 3,000 steps are 3
million tokens, the paper's models read 400 billion; that the architecture can read its neighbours
is shown by tests/models/test_retro.py, where they hold what comes next and the loss falls from
chance to under a fifth of it in 400 steps.
2.4 % of the held-out chunks share half of their tokens or more with a neighbour, in one run;
retrieval_overlap leaves these out (section 2.6). Text is written without neighbours.

Time: 8.6 minutes on 2 CPU cores that five other programs kept busy, 6.8 without neighbours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="stdlib", max_bytes=6_000_000, tokenizer="bpe:2048", seq_len=256,
                batch_size=4, retrieval="tfidf", retrieval_chunk=64, neighbours=2,
            ),
            model=dict(
                family="retro", num_layers=4, width=160, num_heads=4, positions="rope",
                chunk=64, retrieval_layers=(3,), encoder_layers=1,
                norm="rms_norm", norm_scale=False, norm_epsilon=1e-6, embed_norm=True,
                qk_norm=True, qk_scale=2.0, short_conv=4, activation="relu2", bias=False,
                tie_embeddings=False, init="fan_in", zero_init_output=True,
                compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.01, rates=("head/.*:0.4",),
                eps=1e-10, weight_decay=0.0, schedule="linear", warmup_steps=0, final_fraction=0.0,
            ),
            train=dict(steps=400, eval_every=100, eval_tokens=16384),
            checkpoint=dict(every=400, keep=1, keep_best=0),
            generate=dict(prompts=("def ",), max_new_tokens=60, temperature=0.7),
        )
    )  # fmt: skip
