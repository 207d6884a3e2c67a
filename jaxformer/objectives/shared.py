"""What objectives have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., tuple[jax.Array, Metrics]]

# Axes that not every batch has: the array whose second axis says how long they are.
WIDTHS = {"S": "source", "P": "targets"}


def checked(
    whole: Callable[[Batch], Batch] | None = None, /, **shapes: str
) -> Callable[[Loss], Loss]:
    """Checks at a loss function's border: what it reads of the batch, and what it returns.

    Args:
      whole: what must be added to a whole batch before it is cut into parts (see `balanced`); the
        loss function keeps it as its attribute `whole`.
      **shapes: axes by the array's name in the batch, as in targets="BT"; B and T are those of
        "tokens" [B, T], S that of "source" [B, S], P that of "targets" [B, P].

    Raises:
      AssertionError: a shape does not fit that of the tokens; the loss, or a metric's sum or
        count, is no scalar.
    """

    def decorate(loss_fn: Loss) -> Loss:
        @functools.wraps(loss_fn)
        def wrapped(params, batch, key, train):
            chex.assert_rank(batch["tokens"], 2)
            B, T = batch["tokens"].shape
            shapes_of = {axis: jnp.shape(batch.get(name, 0)) for axis, name in WIDTHS.items()}
            widths = {axis: shape[1] for axis, shape in shapes_of.items() if len(shape) > 1}
            sizes = chex.Dimensions(B=B, T=T, **widths)
            for name, axes in shapes.items():
                chex.assert_shape(batch[name], sizes[axes])
            loss, metrics = loss_fn(params, batch, key, train)
            chex.assert_shape([loss, *jax.tree.leaves(metrics)], ())
            chex.assert_type(loss, float)
            return loss, metrics

        wrapped.whole = whole  # type: ignore[attr-defined]
        return wrapped

    return decorate


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count, or 0 for a batch of padding only."""
    return total / jnp.maximum(count, 1.0)


def real_rows(batch: Batch) -> jax.Array:
    """Returns 1.0 for each row [B] with a real token; rows that fill up a batch have none."""
    if "segment_ids" not in batch:
        return jnp.ones(batch["tokens"].shape[0], jnp.float32)
    return jnp.any(batch["segment_ids"] != 0, axis=1).astype(jnp.float32)


def real_tokens(batch: Batch) -> jax.Array:
    """Returns 1.0 for each token [B, T] that is no padding."""
    if "segment_ids" not in batch:
        return jnp.ones(batch["tokens"].shape, jnp.float32)
    return (batch["segment_ids"] != 0).astype(jnp.float32)


def balance(batch: Batch, first_B: jax.Array, second_B: jax.Array) -> Batch:
    """Returns the batch with "balance" [B]: how many of the first count there are to one of second.

    A loss that is the sum of two means, over predictions and over rows, say, has no single count by
    which the parts of a cut batch could be weighed. With the whole batch's ratio of both counts
    carried along in each row it has: see `balanced`.

    Args:
      batch: a whole batch.
      first_B: what each row adds to the first mean's count.
      second_B: the same of the second.
    """
    ratio = mean(first_B.sum(), second_B.sum())
    return {**batch, "balance": jnp.full(batch["tokens"].shape[0], ratio, jnp.float32)}


def balanced(
    batch: Batch,
    first: tuple[jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array],
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns mean(first) + scale * mean(second) as one (sum, count), of which parts add up.

    Args:
      batch: a whole batch, or a part of one that has been through `balance`.
      first: (sum, count); its count is the result's.
      second: (sum, count).
      scale: the second's weight.
    """
    ratio = batch["balance"][0] if "balance" in batch else mean(first[1], second[1])
    return first[0] + scale * ratio * second[0], first[1]


def dropout_key(key: jax.Array | None, batch: Batch) -> jax.Array | None:
    """Returns the key of this part of the batch, so that accumulated parts drop differently."""
    if key is None or "rows" not in batch:
        return key
    return jax.random.fold_in(key, batch["rows"][0])
