"""Rotary positions (RoPE), and the ways to stretch them over longer texts.

Shapes: B batch, T time, N heads, H head width, R channels that turn (H, or fewer).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

SCALINGS = ("", "linear", "ntk", "yarn", "llama3")


def rope_frequencies(
    head_dim: int,
    base: float = 10_000.0,
    *,
    scaling: str = "",
    factor: float = 1.0,
    original_length: int = 0,
    low_frequency_factor: float = 1.0,
    high_frequency_factor: float = 4.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[jax.Array, float]:
    """The angle by which each pair of channels turns per position (Su et al., 2021, eq. 15).

    Args:
      head_dim: R, the channels that turn: the head width, or less for partial rotary; even.
      base: 10000 in the paper, 500000 in Llama 3.
      scaling: "" for none;
        "linear": all angles / factor (position interpolation; Chen et al., 2023, eq. 4);
        "ntk": a larger base, so that the slowest pair turns 1/factor as fast and the fastest is
        untouched (bloc97, 2023; Peng et al., 2023, eq. 16). Hugging Face's "dynamic" is this with
        the factor `factor * length / original_length - (factor - 1)` for the length at hand;
        "yarn": linear for the slow pairs, none for the fast ones, a ramp between (Peng et al.,
        2023, section 3.2);
        "llama3": the same idea with a ramp in the wavelength (Dubey et al., 2024; the published
        code).
      factor: how many times longer the text becomes.
      original_length: the length that the model was trained on ("yarn", "llama3").
      low_frequency_factor: "llama3": pairs that turn fewer times in the original length are slow.
      high_frequency_factor: "llama3": pairs that turn more times are fast.
      beta_fast: "yarn": pairs that turn more times in the original length are fast.
      beta_slow: "yarn": pairs that turn fewer times are slow.

    Returns:
      (float32 [R/2] radians per position, the factor by which `rope` multiplies its result: 1
      but for "yarn").

    Raises:
      ValueError: an odd head width, an unknown scaling, or a factor or length out of range.
    """
    if head_dim % 2:
        raise ValueError(f"rope_frequencies: head_dim must be even, not {head_dim}")
    if scaling not in SCALINGS:
        raise ValueError(f"rope_frequencies: scaling {scaling!r} is not one of {SCALINGS}")
    if factor < 1.0:
        raise ValueError(f"rope_frequencies: factor must be >= 1, not {factor}")
    if scaling in ("yarn", "llama3") and original_length <= 0:
        raise ValueError(f"rope_frequencies: {scaling} needs original_length, the trained length")
    if scaling == "ntk":
        base *= factor ** (head_dim / (head_dim - 2))
    pair = jnp.arange(head_dim // 2, dtype=jnp.float32)
    frequencies = base ** (-2.0 * pair / head_dim)
    if scaling == "linear":
        return frequencies / factor, 1.0
    if scaling == "llama3":
        turns = original_length * frequencies / (2.0 * math.pi)
        width = high_frequency_factor - low_frequency_factor
        fast = jnp.clip((turns - low_frequency_factor) / width, 0.0, 1.0)
        return frequencies * (fast + (1.0 - fast) / factor), 1.0
    if scaling == "yarn":
        low, high = (
            _pair_that_turns(beta, head_dim, base, original_length)
            for beta in (beta_fast, beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
        slow = jnp.clip((pair - low) / max(high - low, 0.001), 0.0, 1.0)
        attention_factor = 0.1 * math.log(factor) + 1.0
        return frequencies * (slow / factor + 1.0 - slow), attention_factor
    return frequencies, 1.0


def _pair_that_turns(times: float, head_dim: int, base: float, length: int) -> float:
    """The (fractional) pair that turns so many times in `length` (Peng et al., 2023, eq. 17)."""
    return head_dim * math.log(length / (times * 2.0 * math.pi)) / (2.0 * math.log(base))


def rope(
    x_BTNH: jax.Array,
    positions_BT: jax.Array,
    frequencies: jax.Array,
    *,
    interleaved: bool = False,
    attention_factor: float = 1.0,
) -> jax.Array:
    """Turns pairs of channels by angles proportional to the position (Su et al., 2021, eq. 34).

    Args:
      x_BTNH: queries or keys.
      positions_BT: integer positions; [1, T] serves the whole batch.
      frequencies: [R/2] from `rope_frequencies`; channels beyond R pass unturned (partial rotary).
      interleaved: pairs are channels (0, 1), (2, 3)... as in the paper and GPT-J; False pairs
        channel i with i + R/2 as Llama's published weights do. Mixing them up corrupts silently.
      attention_factor: multiplies the result (YaRN; `rope_scaling.yarn_attention_factor`).

    Returns:
      [B, T, N, H] in the dtype of `x_BTNH`.

    Raises:
      ValueError: more channels to turn than the head has.
    """
    rotated = 2 * frequencies.shape[-1]
    if rotated > x_BTNH.shape[-1]:
        raise ValueError(f"rope: {rotated} channels to turn, but a head has {x_BTNH.shape[-1]}")
    angles_BT1R = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = attention_factor * jnp.sin(angles_BT1R), attention_factor * jnp.cos(angles_BT1R)
    x, rest = x_BTNH[..., :rotated].astype(jnp.float32), x_BTNH[..., rotated:]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    else:
        a, b = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    turned = turned.astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
