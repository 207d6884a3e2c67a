"""Differential attention: the difference of two softmaxes, in which noise cancels.

Ye et al., 2025, "Differential Transformer", section 2.1. Heads come in pairs that share values of
twice the width; the second one's weights, times a learned lambda, are taken from the first one's.

Shapes: B batch, T queries, S keys, N heads, n = N/2 pairs, K key heads, H head width of queries and
keys; values have K/2 heads, 2 H wide.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops.attention.api import attention


def differential_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    factor: float | jax.Array,
    scale: float | None = None,
    return_weights: bool = False,
    **asked: Any,
) -> Any:
    """(softmax(q1 k1) - factor softmax(q2 k2)) v, pair by pair (Ye et al., 2025, eq. 1 and 3).

    Heads 2 j and 2 j + 1 are pair j. Any backend computes it, by one call of `attention`.

    Args:
      q_BTNH: queries, N even.
      k_BSKH: keys, K even; K divides N.
      v_BSKH: values [B, S, K / 2, 2 H].
      factor: lambda: a number, or one for each pair [n]; see `differential_factor`.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      return_weights: return the weights float32 [B, n, T, S] too, whose rows sum to 1 - factor and
        which may be negative.
      **asked: mask, bias (of the N heads), soft_cap, dropout_rate, key, backend as in `attention`.

    Returns:
      out [B, T, n, 2 H] in the dtype of the queries, exactly 0 where nothing is seen; or (out,
      weights). The paper normalises each pair and multiplies by 1 - lambda_init afterwards.

    Raises:
      ValueError: heads that do not pair, values of another shape, or what `attention` raises.
    """
    (N, H), (K, _) = q_BTNH.shape[2:], k_BSKH.shape[2:]
    if N % 2 or K % 2:
        raise ValueError(f"differential_attention: heads come in pairs, not {N} and {K}")
    if v_BSKH.shape != (*k_BSKH.shape[:2], K // 2, 2 * H):
        raise ValueError(
            f"differential_attention: values must be {(*k_BSKH.shape[:2], K // 2, 2 * H)}, half as "
            f"many heads and twice as wide as keys, not {v_BSKH.shape}"
        )
    # Zeros make queries and keys as wide as the values, and change no logit.
    wide = [(0, 0)] * 3 + [(0, H)]
    result = attention(
        jnp.pad(q_BTNH, wide), jnp.pad(k_BSKH, wide), jnp.repeat(v_BSKH, 2, axis=2),
        scale=1.0 / math.sqrt(H) if scale is None else scale, return_weights=return_weights,
        **asked,
    )  # fmt: skip
    factor = jnp.asarray(factor, jnp.float32)
    out, weights = result if return_weights else (result, None)
    first, second = (out[:, :, i::2].astype(jnp.float32) for i in (0, 1))
    out = (first - jnp.reshape(factor, (-1, 1)) * second).astype(q_BTNH.dtype)
    if weights is None:
        return out
    return out, weights[:, ::2] - jnp.reshape(factor, (-1, 1, 1)) * weights[:, 1::2]


def differential_factor(
    q1_H: jax.Array, k1_H: jax.Array, q2_H: jax.Array, k2_H: jax.Array, initial: float | jax.Array
) -> jax.Array:
    """lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init (Ye et al., 2025, eq. 2), a scalar.

    Args:
      q1_H: four learned vectors of the head width, this and the next three.
      k1_H: see q1_H.
      q2_H: see q1_H.
      k2_H: see q1_H.
      initial: lambda_init; see `differential_start`.
    """
    return jnp.exp(jnp.dot(q1_H, k1_H)) - jnp.exp(jnp.dot(q2_H, k2_H)) + initial


def differential_start(layer: int | jax.Array) -> jax.Array:
    """lambda_init = 0.8 - 0.6 exp(-0.3 l) of layer l, from 0 (Ye et al., 2025, section 2.1)."""
    return 0.8 - 0.6 * jnp.exp(-0.3 * jnp.asarray(layer, jnp.float32))
