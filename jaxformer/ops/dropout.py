"""Dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate`, scales the rest by 1/(1 - rate).

    Srivastava et al., 2014, section 10 (the scaling at training time).

    Args:
      x: any shape.
      rate: static probability of dropping, 0 <= rate < 1.
      key: a random key; None means evaluation, the identity.

    Returns:
      An array like `x`; `x` itself when `key` is None or `rate` is 0.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout: the rate must be in [0, 1), not {rate}")
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
