"""Marian (Junczys-Dowmunt 2018): the 2017 Transformer, with all sines before all cosines."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.bart_layers import layers, read_shape, write_shape
from jaxformer.interop.family import HF, Family, architecture, setting
from jaxformer.interop.table import ROW, Rule
from jaxformer.models.encoder_decoder import Config

ARCHITECTURES = ("MarianMTModel", "MarianModel")


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "tie_word_embeddings", True, default=True)
    setting(hf, "normalize_before", False, default=False)
    setting(hf, "static_position_embeddings", True, default=True)
    shape = read_shape(hf)
    shared = bool(setting(hf, "share_encoder_decoder_embeddings", default=True))
    source = shape["vocab_size"]
    if not shared:
        shape["vocab_size"] = setting(hf, "decoder_vocab_size", default=source)
    return Config(
        **shape,
        positions="sinusoidal",
        share_embeddings=shared,
        source_vocab_size=0 if shared else source,
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    start = config.start_id if config.start_id >= 0 else 0
    return {
        **write_shape(config, "marian", ARCHITECTURES[0]),
        "vocab_size": config.source_vocab_size or config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
        "pad_token_id": start,
        "eos_token_id": 0,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [
        Rule("final_logits_bias", "head/bias", ROW),
        Rule("lm_head.weight", "embed/tokens", use="read"),
    ]
    if config.share_embeddings:
        rules += [
            Rule("model.shared.weight", "embed/tokens"),
            Rule("model.encoder.embed_tokens.weight", "embed/tokens", use="read"),
            Rule("model.decoder.embed_tokens.weight", "embed/tokens", use="read"),
        ]
    else:
        rules += [
            Rule("model.encoder.embed_tokens.weight", "encoder/embed/tokens"),
            Rule("model.decoder.embed_tokens.weight", "embed/tokens"),
        ]
    return (*rules, *layers("encoder"), *layers("decoder"))


FAMILY = Family(
    "marian", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="model.", ignored=(r"(model\.)?(encoder|decoder)\.embed_positions\.weight",),
)  # fmt: skip
