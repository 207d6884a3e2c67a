"""T5 (Raffel 2020) and T5 1.1, with Flan-T5: relative positions, RMS norms, no attention scale.

T5 ties its head to the embedding and scales what it reads by 1 / sqrt(D); T5 1.1 does neither.
"""

from __future__ import annotations

from typing import Any

from jaxformer.errors import UserError
from jaxformer.interop.family import ACTIVATIONS, HF, Family, architecture, setting, sizes
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models.encoder_decoder import Config

ARCHITECTURES = ("T5ForConditionalGeneration", "T5Model")


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json.

    The head is tied where there is no tensor of its own: transformers 5 writes
    tie_word_embeddings=true into every config.json of a T5.
    """
    architecture(hf, ARCHITECTURES)
    shape: dict[str, Any] = sizes(
        {"num_decoder_layers": hf.get("num_layers"), **hf}, vocab_size="vocab_size",
        width="d_model", head_dim="d_kv", feed_forward="d_ff", num_layers="num_layers",
        decoder_layers="num_decoder_layers", num_heads="num_heads",
    )  # fmt: skip
    deep = shape.pop("decoder_layers")
    gate, _, name = str(setting(hf, "feed_forward_proj", default="relu")).rpartition("-")
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise UserError(
            f"config.json: feed_forward_proj is {hf['feed_forward_proj']!r}; supported: "
            f"relu, gated-gelu, gated-silu or another of {', '.join(ACTIVATIONS)}"
        )
    if gate and name == "gelu":
        name = "gelu_new"  # as its authors' code
    tied = "lm_head.weight" not in names
    scaled = setting(hf, "scale_decoder_outputs", default=hf.get("tie_word_embeddings", True))
    return Config(
        **shape,
        decoder_layers=0 if deep == shape["num_layers"] else deep,
        max_length=setting(hf, "n_positions", default=512),
        norm_position="pre",
        norm="rms_norm",
        norm_epsilon=float(setting(hf, "layer_norm_epsilon", default=1e-6)),
        bias=False,
        activation=ACTIVATIONS[name],
        gated=bool(gate),
        positions="t5",
        relative_buckets=setting(hf, "relative_attention_num_buckets", default=32),
        relative_max_distance=setting(hf, "relative_attention_max_distance", default=128),
        attention_scale=1.0,
        embed_scale=False,
        tie_embeddings=tied,
        logit_scale=shape["width"] ** -0.5 if scaled else 0.0,
        start_id=setting(hf, "decoder_start_token_id", default=hf.get("pad_token_id") or 0),
        dropout=hf.get("dropout_rate", 0.1),
        init="normal",
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    name = {"gelu_tanh": "gelu" if config.gated else "gelu_new"}.get(
        config.activation, config.activation
    )
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": config.per_head,
        "d_ff": config.feed_forward_width,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.decoder_layers or config.num_layers,
        "num_heads": config.num_heads,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": ("gated-" if config.gated else "") + name,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "tie_word_embeddings": bool(config.logit_scale),
        "decoder_start_token_id": config.start_id if config.start_id >= 0 else 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": config.dropout,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [Rule("shared.weight", "embed/tokens")]
    if config.tie_embeddings:
        rules.append(Rule("lm_head.weight", "embed/tokens", use="read"))
    else:
        rules.append(Rule("lm_head.weight", "head/table"))
    for side in ("encoder", "decoder"):
        at, ours = f"{side}.block.{{layer}}.layer.", f"{side}/layers/"
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules += [
            Rule(f"{side}.embed_tokens.weight", "embed/tokens", use="read"),
            Rule(first, f"{side}/relative/relative_bias"),
            *norm(f"{side}.final_layer_norm", f"{side}/final_norm", bias=False),
        ]
        attentions = {"attention": "SelfAttention"}
        if side == "decoder":
            attentions["cross_attention"] = "EncDecAttention"
        for place, (path, name) in enumerate(attentions.items()):
            block = f"{at}{place}."
            for leaf in "qkv":
                rules += linear(f"{block}{name}.{leaf}", f"{ours}{path}/{leaf}")
            out = f"{block}{name}.o"
            rules += linear(out, f"{ours}{path}/out", None, LINEAR_FROM_HEADS)
            rules += norm(f"{block}layer_norm", f"{ours}{path}_norm", bias=False)
        block = f"{at}{len(attentions)}."
        parts = {"in": "wi", "out": "wo"}
        if config.gated:
            parts = {"gate": "wi_0", "in": "wi_1", "out": "wo"}
        for leaf, name in parts.items():
            rules += linear(f"{block}DenseReluDense.{name}", f"{ours}feed_forward/{leaf}")
        rules += norm(f"{block}layer_norm", f"{ours}feed_forward_norm", bias=False)
    return tuple(rules)


FAMILY = Family(
    "t5", Config, ARCHITECTURES, read_config, write_config, table,
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)  # fmt: skip
