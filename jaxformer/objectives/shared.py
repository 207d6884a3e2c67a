"""What objectives have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def checked(**shapes: str) -> Callable[[Loss], Loss]:
    """Checks at a loss function's border: what it reads of the batch, and what it returns.

    Args:
      **shapes: axes by the array's name in the batch, as in targets="BT"; B and T are those of
        "tokens" [B, T].

    Raises:
      AssertionError: a shape does not fit that of the tokens; the loss, or a metric's sum or
        count, is no scalar.
    """

    def decorate(loss_fn: Loss) -> Loss:
        @functools.wraps(loss_fn)
        def wrapped(params, batch, key, train):
            chex.assert_rank(batch["tokens"], 2)
            B, T = batch["tokens"].shape
            sizes = chex.Dimensions(B=B, T=T)
            for name, axes in shapes.items():
                chex.assert_shape(batch[name], sizes[axes])
            loss, metrics = loss_fn(params, batch, key, train)
            chex.assert_shape([loss, *jax.tree.leaves(metrics)], ())
            chex.assert_type(loss, float)
            return loss, metrics

        return wrapped

    return decorate


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count, or 0 for a batch of padding only."""
    return total / jnp.maximum(count, 1.0)


def dropout_key(key: jax.Array | None, batch: dict[str, jax.Array]) -> jax.Array | None:
    """Returns the key of this part of the batch, so that accumulated parts drop differently."""
    if key is None or "rows" not in batch:
        return key
    return jax.random.fold_in(key, batch["rows"][0])
