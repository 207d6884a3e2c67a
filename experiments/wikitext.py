"""A small GPT on WikiText-2 (Merity 2017), judged so that other tokenizers can be compared with it.

    jaxformer train --config experiments/wikitext.py --config.data.source=wiki.train.txt \\
        --config.data.validation_source=wiki.valid.txt
    jaxformer perplexity --workdir runs/wikitext --text wiki.valid.txt --stride 64 \\
        --max_length 256
    jaxformer perplexity --from GPT2_FOLDER --text wiki.valid.txt --stride 512

A perplexity of tokens says nothing beside another tokenizer's; one of words or bits per byte does.

Time: 9.5 minutes on one busy CPU core, for 4.6 epochs of the first 90 % of its validation file (1.0
MB; the training file has 10.8 MB and was not at hand). Score, one seed, on the last 10 %, each
token after 192 to 255 others: 1.903 bits per byte, perplexity 78.4 of tokens, 925 of words.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="wiki.train.txt", validation_source="wiki.valid.txt", tokenizer="bpe:4096",
                seq_len=256, batch_size=8,
            ),
            model=dict(
                family="decoder", num_layers=4, width=192, num_heads=4, max_length=1024,
                positions="rope", norm="rms_norm", norm_scale=False, norm_epsilon=1e-6,
                embed_norm=True, qk_norm=True, qk_scale=2.0, short_conv=4, activation="relu2",
                bias=False, tie_embeddings=False, init="fan_in", zero_init_output=True,
                dropout=0.1, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.01, rates=("head/.*:0.4",),
                eps=1e-10, weight_decay=0.0, schedule="linear", warmup_steps=0, final_fraction=0.0,
            ),
            train=dict(steps=600, eval_every=150, eval_tokens=65536),
            checkpoint=dict(every=300, keep=1, keep_best=0),
            generate=dict(prompts=(" The",), max_new_tokens=150, temperature=0.7),
        )
    )  # fmt: skip
