"""What BART and Marian share: names of both stacks, and keys of config.json."""

from __future__ import annotations

from typing import Any

from jaxformer.errors import UserError
from jaxformer.interop.family import HF, activation, published_activation, setting, sizes
from jaxformer.interop.table import LINEAR_FROM_HEADS, Rule, linear, norm
from jaxformer.models.encoder_decoder import Config


def read_shape(hf: HF) -> dict[str, Any]:
    """Returns our keys for config.json's sizes and for what the two agree on."""
    keys: dict[str, Any] = sizes(
        hf, vocab_size="vocab_size", width="d_model", num_layers="encoder_layers",
        decoder_layers="decoder_layers", num_heads="encoder_attention_heads",
        feed_forward="encoder_ffn_dim", max_length="max_position_embeddings",
    )  # fmt: skip
    for name in ("attention_heads", "ffn_dim"):
        if hf.get(f"decoder_{name}") != hf[f"encoder_{name}"]:
            raise UserError(
                f"config.json: decoder_{name} is {hf.get(f'decoder_{name}')!r}; supported: "
                f"encoder_{name}, which is {hf[f'encoder_{name}']!r}"
            )
    deep = keys.pop("decoder_layers")
    return {
        **keys,
        "decoder_layers": 0 if deep == keys["num_layers"] else deep,
        "norm_position": "post",
        "norm_epsilon": 1e-5,
        "activation": activation(hf, "activation_function", "gelu"),
        "embed_scale": bool(setting(hf, "scale_embedding", default=False)),
        "head_bias": True,
        "init": "normal",
        "start_id": setting(hf, "decoder_start_token_id", default=-1),
        "dropout": hf.get("dropout", 0.1),
        "attention_dropout": hf.get("attention_dropout", 0.0),
        "init_std": hf.get("init_std", 0.02),
    }


def write_shape(config: Config, model_type: str, architecture: str) -> dict[str, Any]:
    """Returns config.json's keys for what `read_shape` reads."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.decoder_layers or config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.feed_forward_width,
        "decoder_ffn_dim": config.feed_forward_width,
        "max_position_embeddings": config.max_length,
        "activation_function": published_activation(config.activation),
        "scale_embedding": config.embed_scale,
        "decoder_start_token_id": config.start_id if config.start_id >= 0 else None,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_std": config.init_std,
        "forced_eos_token_id": None,
    }


def layers(side: str) -> list[Rule]:
    """Returns the rules of the layers of one side, "encoder" or "decoder"."""
    at, ours = f"model.{side}.layers.{{layer}}.", f"{side}/layers/"
    rules: list[Rule] = []
    attentions = {"attention": "self_attn"}
    if side == "decoder":
        attentions["cross_attention"] = "encoder_attn"
    for path, name in attentions.items():
        for leaf in "qkv":
            rules += linear(
                f"{at}{name}.{leaf}_proj", f"{ours}{path}/{leaf}", f"{ours}{path}/{leaf}_bias"
            )
        rules += [
            *linear(
                f"{at}{name}.out_proj", f"{ours}{path}/out", f"{ours}{path}/out_bias",
                LINEAR_FROM_HEADS,
            ),
            *norm(f"{at}{name}_layer_norm", f"{ours}{path}_norm"),
        ]  # fmt: skip
    feed = f"{ours}feed_forward/"
    return [
        *rules,
        *linear(f"{at}fc1", f"{feed}in", f"{feed}in_bias"),
        *linear(f"{at}fc2", f"{feed}out", f"{feed}out_bias"),
        *norm(f"{at}final_layer_norm", f"{ours}feed_forward_norm"),
    ]
