"""Choosing the next token from logits: temperature, top-k, top-p, min-p.

Each filter returns logits with -inf where a token may not be drawn; the largest logit always
stays, so no filter can leave a row empty. Options may be traced scalars or one value per row.
Shapes: B batch, V vocabulary; `..` any leading axes.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

Option: TypeAlias = float | int | jax.Array  # a scalar, or an array that fits the rows [..]


def top_k(logits_V: jax.Array, k: Option) -> jax.Array:
    """Keeps the k largest logits of each row, and any that equal the k-th (Fan et al., 2018).

    Args:
      logits_V: [.., V].
      k: int, scalar or one per row; 0 (or less) keeps all.

    Returns:
      [.., V] logits, -inf where a token was dropped.
    """
    size = logits_V.shape[-1]
    if isinstance(k, int):  # no full sort where k is known
        if k <= 0 or k >= size:
            return logits_V
        smallest = jax.lax.top_k(logits_V, k)[0][..., -1:]
    else:
        k = _per_row(k, logits_V)
        descending_V = -jnp.sort(-logits_V, axis=-1)
        last = jnp.where(k > 0, jnp.minimum(k, size), size).astype(jnp.int32) - 1
        last = jnp.broadcast_to(last, (*logits_V.shape[:-1], 1))
        smallest = jnp.take_along_axis(descending_V, last, axis=-1)
    return jnp.where(logits_V >= smallest, logits_V, -jnp.inf)


def top_p(logits_V: jax.Array, p: Option) -> jax.Array:
    """Keeps the smallest set of most likely tokens whose probability reaches p (nucleus).

    Holtzman et al. (2020), section 3.1. Tokens as likely as the set's last one stay too.

    Args:
      logits_V: [.., V].
      p: scalar or one per row; 1 keeps all, 0 keeps the most likely token.

    Returns:
      [.., V] logits, -inf where a token was dropped.
    """
    if isinstance(p, int | float) and p >= 1:
        return logits_V
    p = _per_row(p, logits_V)
    descending_V = -jnp.sort(-logits_V, axis=-1)
    probability_V = jax.nn.softmax(descending_V.astype(jnp.float32), axis=-1)
    # A token stays while those before it have not reached p; the first has none before it.
    before_V = jnp.cumsum(probability_V, axis=-1) - probability_V
    stays_V = (before_V < p) | (p >= 1)
    stays_V = stays_V.at[..., 0].set(True)
    smallest = jnp.min(jnp.where(stays_V, descending_V, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_V >= smallest, logits_V, -jnp.inf)


def min_p(logits_V: jax.Array, p: Option) -> jax.Array:
    """Keeps tokens at least p times as likely as the most likely one (Nguyen et al., 2024, eq. 2).

    Args:
      logits_V: [.., V].
      p: scalar or one per row in [0, 1]; 0 keeps all.

    Returns:
      [.., V] logits, -inf where a token was dropped.
    """
    if isinstance(p, int | float) and p <= 0:
        return logits_V
    # p_i >= p * p_max is a threshold on the logits: no softmax is needed.
    p = jnp.clip(_per_row(p, logits_V).astype(jnp.float32), 0, 1)
    smallest = jnp.max(logits_V, axis=-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits_V >= smallest, logits_V, -jnp.inf)


def sample(
    key: jax.Array,
    logits_BV: jax.Array,
    *,
    temperature: Option = 1.0,
    top_k: Option = 0,
    top_p: Option = 1.0,
    min_p: Option = 0.0,
) -> jax.Array:
    """Draws one token per row, after temperature, top-k, top-p and min-p in that order.

    Args:
      key: one key for the batch, or one per row [B]: then a row's draw depends on its own key and
        logits only, whatever its batch mates.
      logits_BV: [B, V]. NaN counts as -inf; a row of -inf only draws token 0.
      temperature: divides the logits; 0 (or less) takes the most likely token. Scalar or [B].
      top_k: see `top_k`; 0 is off.
      top_p: see `top_p`; 1 is off.
      min_p: see `min_p`; 0 is off.

    Returns:
      int32 [B].
    """
    huge = jnp.finfo(jnp.float32).max
    logits_BV = jnp.nan_to_num(
        logits_BV.astype(jnp.float32), nan=-jnp.inf, posinf=huge, neginf=-jnp.inf
    )
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if isinstance(temperature, int | float):
        if temperature <= 0:
            return likeliest_B
        warm_B = None
        divisor = temperature
    else:
        warm_B = jnp.broadcast_to(temperature > 0, likeliest_B.shape)
        divisor = _per_row(jnp.where(temperature > 0, temperature, 1), logits_BV)
    # Subtracting the maximum first keeps a tiny temperature from overflowing to inf - inf.
    largest_B = jnp.max(logits_BV, axis=-1, keepdims=True)
    centred_BV = jnp.where(logits_BV == -jnp.inf, -jnp.inf, logits_BV - largest_B)
    scaled_BV = centred_BV / divisor
    if isinstance(top_k, int) and 0 < top_k < scaled_BV.shape[-1]:
        # The rest works on k numbers a row: no sort of, and no noise for, the whole vocabulary.
        scaled_BV, index_BV = jax.lax.top_k(scaled_BV, top_k)
    else:
        scaled_BV, index_BV = _top_k(scaled_BV, top_k), None
    filtered_BV = _min_p(_top_p(scaled_BV, top_p), min_p)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == likeliest_B.shape:
        drawn_B = jax.vmap(jax.random.categorical)(key, filtered_BV)
    else:
        drawn_B = jax.random.categorical(key, filtered_BV, axis=-1)
    if index_BV is not None:
        drawn_B = jnp.take_along_axis(index_BV, drawn_B[:, None], axis=-1)[:, 0]
    drawn_B = drawn_B.astype(jnp.int32)
    return drawn_B if warm_B is None else jnp.where(warm_B, drawn_B, likeliest_B)


# `sample` has arguments of the filters' names.
_top_k, _top_p, _min_p = top_k, top_p, min_p


def _per_row(option: Option, logits_V: jax.Array) -> jax.Array:
    """Returns `option` as an array that broadcasts over the last axis of the logits."""
    option = jnp.asarray(option)
    if option.ndim == 0:
        return option
    return jnp.broadcast_to(option, logits_V.shape[:-1])[..., None]
