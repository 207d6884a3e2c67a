"""What objectives have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count, or 0 for a batch of padding only."""
    return total / jnp.maximum(count, 1.0)


def dropout_key(key: jax.Array | None, batch: dict[str, jax.Array]) -> jax.Array | None:
    """Returns the key of this part of the batch, so that accumulated parts drop differently."""
    if key is None or "rows" not in batch:
        return key
    return jax.random.fold_in(key, batch["rows"][0])
