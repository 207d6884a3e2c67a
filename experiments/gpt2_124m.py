"""GPT-2 124M (Radford 2019) on OpenWebText, or on any text: nanoGPT's recipe.

    pip install "jaxformer[hf,cuda]"
    jaxformer train --config experiments/gpt2_124m.py --require_platform=gpu
    jaxformer train --config experiments/gpt2_124m.py --dry_run          what it takes
    ... --config.data.source=my.txt --config.data.seq_len=128            on a text of yours

Time: 295e9 tokens; at the 475k tokens/s that llm.c publishes for one H100, 172 hours. Score:
nanoGPT publishes a validation loss of 2.85 for this recipe, 3.11 for OpenAI's weights. Not trained
here: checked by --dry_run and by two steps at reduced length on a CPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            data=dict(
                source="hf:Skylion007/openwebtext", tokenizer="bpe:50257", seq_len=1024,
                batch_size=480, validation_fraction=0.0005,
            ),
            model=dict(
                family="decoder", num_layers=12, width=768, num_heads=12, max_length=1024,
                vocab_size=50304, bias=False, norm_bias=False, compute_dtype="bfloat16",
            ),
            optimizer=dict(
                name="adamw", learning_rate=6e-4, b2=0.95, weight_decay=0.1, clip_norm=1.0,
                schedule="cosine", warmup_steps=2000, final_fraction=0.1,
            ),
            train=dict(steps=600_000, accumulate=40, eval_every=1000, eval_tokens=2_000_000),
            checkpoint=dict(every=1000, keep=2, keep_best=1),
            generate=dict(prompts=("The meaning of life is",), max_new_tokens=100),
        )
    )  # fmt: skip
