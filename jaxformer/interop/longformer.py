"""Longformer (Beltagy 2020): RoBERTa with a window, and global tokens that have projections."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.errors import UserError
from jaxformer.interop import roberta
from jaxformer.interop.bert_layers import HEADS
from jaxformer.interop.family import HF, Family
from jaxformer.interop.table import Rule, linear
from jaxformer.models import encoder
from jaxformer.modules import variants

ARCHITECTURES = tuple(f"Longformer{name}" for name in HEADS)


def read_config(hf: HF, names: frozenset[str]) -> encoder.Config:
    """Returns our config of a config.json.

    A classifier's first token is global, as its published class makes it; so are a question's
    tokens, where the batch says which they are ("global_tokens").
    """
    given = hf.get("attention_window", 512)
    windows = set(given) if isinstance(given, list) else {given}
    window = windows.pop() if windows else 0
    if windows or not isinstance(window, int) or window < 2 or window % 2:
        raise UserError(
            f"config.json: attention_window is {given!r}; supported: one even number for all layers"
        )
    config = roberta.read_config(hf, names, "Longformer")
    first = ", global_tokens='first'" if config.num_classes else ""
    return dataclasses.replace(config, attention=f"longformer(window={window}{first})")


def write_config(config: encoder.Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    choice = variants.parse(config.attention)
    window = choice.get("window") if choice is not None else None
    windows = [window or 512] * config.num_layers
    return {**roberta.write_config(config, "longformer", "Longformer"), "attention_window": windows}


def table(config: encoder.Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at, ours = "longformer.encoder.layer.{layer}.attention.self.", "layers/attention/variant/"
    rules = []
    for name, published in {"q": "query", "k": "key", "v": "value"}.items():
        rules += linear(
            f"{at}{published}_global", f"{ours}{name}_global", f"{ours}{name}_global_bias"
        )
    return (*roberta.table(config, "longformer."), *rules)


FAMILY = Family(
    "longformer", encoder.Config, ARCHITECTURES, read_config, write_config, table,
    prefix="longformer.", ignored=(r".*position_ids",), reduce=roberta.FAMILY.reduce,
)  # fmt: skip
