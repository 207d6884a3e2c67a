"""GPT (Radford 2018): a decoder with its norms after each residual sum."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import HF, Family, architecture, setting, sizes
from jaxformer.interop.table import CONV1D, CONV1D_FROM_HEADS, VECTOR, Rule, part
from jaxformer.models import decoder

ARCHITECTURES = ("OpenAIGPTLMHeadModel", "OpenAIGPTModel")
# What this model's config.json calls "gelu" is the tanh form.
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def read_config(hf: HF, names: frozenset[str]) -> decoder.Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "tie_word_embeddings", True, default=True)
    name = setting(hf, "afn", *ACTIVATIONS, default="gelu")
    shape: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", max_length="n_positions", width="n_embd",
        num_layers="n_layer", num_heads="n_head",
    )  # fmt: skip
    return decoder.Config(
        **shape,
        norm_position="post",
        norm_epsilon=float(setting(hf, "layer_norm_epsilon", default=1e-5)),
        activation=ACTIVATIONS[name],
    )


def write_config(config: decoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    names = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "openai-gpt",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_length,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "afn": names.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": True,
    }


def table(config: decoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at = "transformer.h.{layer}."
    rules = [
        Rule("transformer.tokens_embed.weight", "embed/tokens"),
        Rule("transformer.positions_embed.weight", "embed/positions"),
        Rule("lm_head.weight", "embed/tokens", use="read"),
        Rule(at + "attn.c_proj.weight", "layers/attention/out", CONV1D_FROM_HEADS),
        Rule(at + "attn.c_proj.bias", "layers/attention/out_bias"),
        Rule(at + "mlp.c_fc.weight", "layers/feed_forward/in"),
        Rule(at + "mlp.c_fc.bias", "layers/feed_forward/in_bias"),
        Rule(at + "mlp.c_proj.weight", "layers/feed_forward/out"),
        Rule(at + "mlp.c_proj.bias", "layers/feed_forward/out_bias"),
    ]
    for i, name in enumerate("qkv"):
        fused = at + "attn.c_attn."
        rules += [
            Rule(fused + "weight", f"layers/attention/{name}", part(CONV1D, i, 3, axis=1)),
            Rule(fused + "bias", f"layers/attention/{name}_bias", part(VECTOR, i, 3)),
        ]
    for ours, name in {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}.items():
        rules += [
            Rule(f"{at}{name}.weight", f"layers/{ours}/scale"),
            Rule(f"{at}{name}.bias", f"layers/{ours}/bias"),
        ]
    return tuple(rules)


FAMILY = Family(
    "openai-gpt", decoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="transformer.", ignored=(r".*attn\.(bias|masked_bias)", r".*position_ids"),
)  # fmt: skip
