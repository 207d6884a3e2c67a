"""Normalisation over the last axis, its statistics in float32 whatever the input dtype.

Shapes: D the normalised width; `...` anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    eps: float = 1e-5,
) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation (Ba et al., 2016, eq. 4).

    Args:
      x: [..., D], any float dtype.
      scale: [D] gain, or None.
      bias: [D] shift, or None.
      eps: added to the variance (BERT 1e-12, GPT-2 1e-5).

    Returns:
      [..., D] in the dtype of `x`.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 - x32.mean(axis=-1, keepdims=True)
    y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * scale.astype(jnp.float32)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def rms_norm(
    x: jax.Array, scale: jax.Array | None = None, *, eps: float = 1e-6, offset: float = 0.0
) -> jax.Array:
    """Divides by the root mean square (Zhang & Sennrich, 2019, eq. 4).

    Args:
      x: [..., D], any float dtype.
      scale: [D] gain, or None.
      eps: added to the mean square.
      offset: added to the gain; 1.0 gives Gemma's (1 + weight), whose weight starts at 0.

    Returns:
      [..., D] in the dtype of `x`.
    """
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * (scale.astype(jnp.float32) + offset)
    return y.astype(x.dtype)
