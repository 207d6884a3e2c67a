"""ModernBERT (Warner 2024): pre-norm, RoPE, gated, local layers between global ones.

Its first layer has no attention norm: it reads the normalised embedding.
"""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import (
    HF,
    Family,
    activation,
    architecture,
    published_activation,
    setting,
    sizes,
)  # fmt: skip
from jaxformer.interop.rotary_decoders import read_reach, write_reach
from jaxformer.interop.table import LINEAR, LINEAR_FROM_HEADS, VECTOR, Rule, part
from jaxformer.models import encoder

ARCHITECTURES = ("ModernBertForMaskedLM", "ModernBertModel")


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json."""
    cls = architecture(hf, ARCHITECTURES)
    setting(hf, "decoder_bias", True, default=True)
    setting(hf, "tie_word_embeddings", True, default=True)
    biased = bool(setting(hf, "attention_bias", default=False))
    whole = bool(setting(hf, "mlp_bias", default=False))
    if whole:
        setting(hf, "attention_bias", True, default=False)
    shape: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", num_layers="num_hidden_layers", width="hidden_size",
        num_heads="num_attention_heads", feed_forward="intermediate_size",
        max_length="max_position_embeddings", window="local_attention",
    )  # fmt: skip
    every = setting(hf, "global_attn_every_n_layers", default=3)
    kinds = ["local" if i % every else "global" for i in range(shape["num_layers"])]
    pattern = read_reach(hf, kinds)
    base, local_base = _read_ropes(hf)
    return encoder.Config(
        **(shape | {"window": shape["window"] if pattern else 0}),
        norm_position="pre",
        norm_epsilon=float(setting(hf, "norm_eps", default=1e-5)),
        norm_bias=bool(setting(hf, "norm_bias", default=False)),
        first_attention_norm=False,
        bias=whole,
        qkv_bias=biased and not whole,
        attention_out_bias=biased and not whole,
        activation=activation(hf, "hidden_activation", "gelu"),
        gated=True,
        positions="rope",
        rope_base=base,
        rope_local_base=local_base if pattern else 0.0,
        attention_pattern=pattern,
        masked_head=cls == "ModernBertForMaskedLM",
        masked_activation=activation(hf, "classifier_activation", "gelu"),
        masked_kernel_bias=bool(setting(hf, "classifier_bias", default=False)),
    )


def _read_ropes(hf: HF) -> tuple[float, float]:
    """Returns RoPE's bases of global and of local layers, old form or new."""
    nested = hf.get("rope_parameters") or {}
    found = []
    for kind, key, default in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        rope = nested.get(kind) or {}
        setting(rope, "rope_type", "default", default="default")
        found.append(float(rope.get("rope_theta") or hf.get(key) or default))
    return found[0], found[1]


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    local_base = config.rope_local_base or config.rope_base
    return {
        "architectures": [ARCHITECTURES[0 if config.masked_head else 1]],
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "norm_eps": config.norm_epsilon,
        "norm_bias": config.norm_bias,
        "attention_bias": config.bias or config.qkv_bias,
        "mlp_bias": config.bias,
        "hidden_activation": published_activation(config.activation),
        "local_attention": config.window or 128,
        "layer_types": write_reach(config),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_base},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_base},
        },
        "classifier_activation": published_activation(config.masked_activation),
        "classifier_bias": config.masked_kernel_bias,
        "decoder_bias": True,
        "tie_word_embeddings": True,
        # Its defaults lie outside a small vocabulary.
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "cls_token_id": None,
        "sep_token_id": None,
    }  # fmt: skip


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at, later = "model.layers.{layer}.", tuple(range(1, config.num_layers))
    rules = [
        Rule("model.embeddings.tok_embeddings.weight", "embed/tokens"),
        Rule(at + "attn.Wo.weight", "layers/attention/out", LINEAR_FROM_HEADS),
        Rule(at + "mlp.Wi.weight", "layers/feed_forward/gate", part(LINEAR, 0, 2)),
        Rule(at + "mlp.Wi.weight", "layers/feed_forward/in", part(LINEAR, 1, 2)),
        Rule(at + "mlp.Wo.weight", "layers/feed_forward/out", LINEAR),
    ]
    for i, name in enumerate("qkv"):
        rules.append(Rule(at + "attn.Wqkv.weight", f"layers/attention/{name}", part(LINEAR, i, 3)))
        if config.bias or config.qkv_bias:
            path = f"layers/attention/{name}_bias"
            rules.append(Rule(at + "attn.Wqkv.bias", path, part(VECTOR, i, 3)))
    if config.bias or config.attention_out_bias:
        rules.append(Rule(at + "attn.Wo.bias", "layers/attention/out_bias"))
    if config.bias:
        feed = "layers/feed_forward/"
        rules += [
            Rule(at + "mlp.Wi.bias", feed + "gate_bias", part(VECTOR, 0, 2)),
            Rule(at + "mlp.Wi.bias", feed + "in_bias", part(VECTOR, 1, 2)),
            Rule(at + "mlp.Wo.bias", feed + "out_bias"),
        ]
    norms = {
        "embed/norm": "model.embeddings.norm",
        "layers/feed_forward_norm": at + "mlp_norm",
        "final_norm": "model.final_norm",
    }
    if config.masked_head:
        norms["masked_head/norm"] = "head.norm"
    ends = {"scale": ("weight", 1.0)} | ({"bias": ("bias", 0.0)} if config.norm_bias else {})
    for end, (published, fill) in ends.items():
        rules += [Rule(f"{name}.{published}", f"{path}/{end}") for path, name in norms.items()]
        path = f"layers/attention_norm/{end}"
        rules.append(Rule(f"{at}attn_norm.{published}", path, layers=later, fill=fill))
    if config.masked_head:
        rules += [
            Rule("head.dense.weight", "masked_head/kernel", LINEAR),
            Rule("decoder.bias", "masked_head/bias"),
            Rule("decoder.weight", "embed/tokens", use="read"),
        ]
        if config.masked_kernel_bias:
            rules.append(Rule("head.dense.bias", "masked_head/kernel_bias"))
    return tuple(rules)


FAMILY = Family(
    "modernbert", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="model.", ignored=(r".*inv_freq",),
)  # fmt: skip
