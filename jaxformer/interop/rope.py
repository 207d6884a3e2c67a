"""RoPE's keys of config.json, in the form of transformers 5 and of 4, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError

KINDS = ("default", "linear", "yarn", "llama3")
# What "yarn" takes besides its factor and length, and the only values that ours has.
_YARN = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None,
         "mscale_all_dim": None, "truncate": True}  # fmt: skip


def read_rope(hf: Mapping[str, Any], rope: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns our RoPE keys of config.json's.

    Args:
      hf: config.json.
      rope: the part of it that describes RoPE, where it is not the usual one (that of one kind of
        layers).

    Raises:
      UserError: a kind of scaling, or a setting of it, that ours lacks.
    """
    if rope is None:
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in KINDS:
        raise UserError(f"config.json: rope_type is {kind!r}; supported: {', '.join(KINDS)}")
    partial = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise UserError(f"config.json: partial_rotary_factor is {partial!r}; supported: 1.0")
    theta = rope.get("rope_theta") or hf.get("rope_theta") or 10000.0
    keys: dict[str, Any] = {"rope_base": float(theta)}
    if kind == "default":
        return keys
    keys |= {"rope_scaling": kind, "rope_scaling_factor": _number(rope, "factor")}
    if kind == "linear":
        return keys
    trained = rope.get("original_max_position_embeddings") or hf.get("max_position_embeddings", 0)
    keys["rope_original_length"] = int(trained)
    if kind == "llama3":
        factors = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        return {**keys, "rope_frequency_factors": factors}
    for key, standard in _YARN.items():
        if rope.get(key) is not None and rope[key] != standard:
            raise UserError(f"config.json: {key} of RoPE is {rope[key]!r}; supported: {standard!r}")
    return keys


def _number(rope: Mapping[str, Any], key: str) -> float:
    value = rope.get(key)
    if not isinstance(value, (int, float)):
        raise UserError(f"config.json: {key} of RoPE is {value!r}; it must be a number")
    return float(value)


def write_rope(config: Any) -> dict[str, Any]:
    """Returns config.json's RoPE keys of our config, in the form that transformers 4 and 5 read."""
    keys: dict[str, Any] = {"rope_theta": config.rope_base}
    if config.rope_scaling:
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_scaling_factor}
        if config.rope_scaling != "linear":
            length = config.rope_original_length or config.max_length
            scaling["original_max_position_embeddings"] = length
        if config.rope_scaling == "llama3":
            low, high = config.rope_frequency_factors
            scaling |= {"low_freq_factor": low, "high_freq_factor": high}
        keys["rope_scaling"] = scaling
    return keys
