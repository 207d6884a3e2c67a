"""BART (Lewis 2020): post-norm, learned positions from row 2 on, normed embeddings."""

from __future__ import annotations

from typing import Any

from jaxformer.interop.bart_layers import layers, read_shape, write_shape
from jaxformer.interop.family import HF, Family, architecture, setting
from jaxformer.interop.table import ROW, Rule, norm
from jaxformer.models.encoder_decoder import Config

ARCHITECTURES = ("BartForConditionalGeneration", "BartModel")
OFFSET = 2  # of the published position table


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "tie_word_embeddings", True, default=True)
    setting(hf, "normalize_before", False, default=False)
    return Config(
        **{"start_id": 2, **read_shape(hf)},
        positions="learned",
        position_offset=OFFSET,
        embed_norm=True,
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        **write_shape(config, "bart", ARCHITECTURES[0]),
        "tie_word_embeddings": True,
        "pad_token_id": 1 if config.vocab_size > 1 else 0,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [
        Rule("model.shared.weight", "embed/tokens"),
        Rule("lm_head.weight", "embed/tokens", use="read"),
        Rule("final_logits_bias", "head/bias", ROW),
    ]
    for side in ("encoder", "decoder"):
        rules += [
            Rule(f"model.{side}.embed_tokens.weight", "embed/tokens", use="read"),
            Rule(f"model.{side}.embed_positions.weight", f"{side}/embed/positions"),
            *norm(f"model.{side}.layernorm_embedding", f"{side}/embed/norm"),
            *layers(side),
        ]
    return tuple(rules)


FAMILY = Family(
    "bart", Config, ARCHITECTURES, read_config, write_config, table, prefix="model."
)  # fmt: skip
