"""A GPT on the characters of any text file, trained for quality per token.

jaxformer train --config experiments/gpt_char.py --config.data.source=tinyshakespeare.txt

Time and score on tiny Shakespeare (char-rnn's; first 90 % to train on, 65 characters), with 807,176
parameters and 1,536,000 training tokens, the budget of nanoGPT's CPU recipe, which publishes 1.88:
2.5 to 3.1 minutes on 2 CPU cores, validation loss on the whole validation split 1.475, each
character seen with 64 to 127 before it (data.eval_stride=64), and 1.498 in windows that do not
overlap (data.eval_stride=0). Seeds 1 and 2: 1.488 and 1.480, 1.511 and 1.503.

What it takes: short convolutions before attention and feed-forward, Muon, normalised queries and
keys with a learned scale, no gains or biases, zeros in every output.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="input.txt", tokenizer="char", split="tail", validation_fraction=0.1,
                seq_len=128, batch_size=4, eval_stride=64,
            ),
            model=dict(
                family="decoder", num_layers=4, width=128, num_heads=2, max_length=1024,
                positions="rope", norm="rms_norm", norm_scale=False, norm_epsilon=1e-6,
                embed_norm=True, qk_norm=True, qk_scale=2.0, short_conv=4, activation="relu2",
                bias=False, tie_embeddings=False, init="fan_in", zero_init_output=True,
                compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="muon", learning_rate=0.02, adam_learning_rate=0.01, rates=("head/.*:0.4",),
                eps=1e-10, weight_decay=0.0, clip_norm=0.0, schedule="linear", warmup_steps=0,
                final_fraction=0.0,
            ),
            train=dict(steps=3000, eval_every=1000, log_every=50),
            checkpoint=dict(every=1000, keep=1, keep_best=0),
            generate=dict(prompts=("\n",), max_new_tokens=400),
        )
    )  # fmt: skip
