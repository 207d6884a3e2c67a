"""Linformer: softmax attention to C learned mixtures of the keys, in linear time.

Wang et al., 2020, "Linformer: Self-Attention with Linear Complexity", equation 7:
head = softmax(Q (E K)^T / sqrt(H)) · F V, with E and F of shape C x S.

Shapes: B batch, T queries, S keys, L longest number of keys, C mixtures, N heads, K key/value
heads, G = N/K, H head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops.attention.api import attention
from jaxformer.ops.attention.plain_mask import plain_mask, without_order
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

_WHY = "each mixture holds keys of the whole length"


def linformer(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    keys_NLC: jax.Array,
    values_NLC: jax.Array | None = None,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    return_weights: bool = False,
) -> Any:
    """softmax(scale q (E k)^T) F v, head by head (Wang et al., 2020, eq. 7), in O((T + S) C).

    Which parameters are shared (section 4: headwise, key-value, layerwise) is the caller's choice
    of what to pass here.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      keys_NLC: E, transposed: [L, C] for all heads, or [K, L, C] or [N, L, C]. A sequence shorter
        than L uses the first S rows.
      values_NLC: F, likewise; None: E serves for both.
      mask: None, or parts joined by `&` that hide padding: `masks.lengths`, and `explicit` of
        shape [B, 1, 1, S] or [B, 1, T, 1]. Hidden keys are zeroed before they are mixed.
      bias: must be None: a mixture has no position.
      scale: multiplies q (E k)^T; 1/sqrt(H) if None.
      dropout_rate: static probability of dropping a weight of a mixture.
      key: random key, needed if dropout_rate > 0.
      return_weights: return float32 [B, N, T, S] too, at O(T S): softmax(...) F, by which the
        output is a sum of values. They may be negative, and rows need not sum to 1.

    Returns:
      out_BTNH in the dtype of the queries, or (out_BTNH, weights_BNTS).

    Raises:
      ValueError: more keys than L, a causal or packed mask, a bias, or shapes that do not fit.
    """
    if bias is not None:
        raise ValueError("linformer: cannot honour a bias, for mixtures have no place; give None")
    (T, N), (S, K) = q_BTNH.shape[1:3], k_BSKH.shape[1:3]
    plain = without_order(plain_mask(mask, "linformer", T, S), "linformer", why=_WHY)
    seen_BS11 = (plain.k_ids_BS != 0)[:, :, None, None]
    values_NLC = keys_NLC if values_NLC is None else values_NLC
    keys_NLC, values_NLC = (_fitting(x, S, K, N) for x in (keys_NLC, values_NLC))
    if keys_NLC.shape[-1] != values_NLC.shape[-1]:
        raise ValueError(
            f"linformer: {keys_NLC.shape[-1]} mixtures of keys and {values_NLC.shape[-1]} of "
            "values; both projections need as many columns"
        )
    k_BCKH = _mix(jnp.where(seen_BS11, k_BSKH, 0), keys_NLC)
    v_BCKH = _mix(jnp.where(seen_BS11, v_BSKH, 0), values_NLC)
    if k_BCKH.shape[2] != v_BCKH.shape[2]:  # one of them per query head
        k_BCKH, v_BCKH = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BCKH, v_BCKH))
    result = attention(
        q_BTNH, k_BCKH, v_BCKH, scale=scale, dropout_rate=dropout_rate, key=key,
        return_weights=return_weights,
    )  # fmt: skip
    out_BTNH, p_BNTC = result if return_weights else (result, None)
    asks_BT = plain.q_ids_BT != 0
    out_BTNH = jnp.where(asks_BT[:, :, None, None], out_BTNH, 0)
    if p_BNTC is None:
        return out_BTNH
    shared = values_NLC.ndim == 2
    per_head = values_NLC[None] if shared else values_NLC
    per_head = jnp.repeat(per_head, N // per_head.shape[0], axis=0).astype(jnp.float32)
    weights_BNTS = einsum("BNTC,NSC->BNTS", p_BNTC, per_head)
    visible = asks_BT[:, None, :, None] & (plain.k_ids_BS != 0)[:, None, None]
    return out_BTNH, jnp.where(visible, weights_BNTS, 0.0)


def _fitting(x_NLC: jax.Array, num_keys: int, num_kv_heads: int, num_heads: int) -> jax.Array:
    """Returns the rows of a projection that this many keys use."""
    if x_NLC.ndim not in (2, 3) or (
        x_NLC.ndim == 3 and x_NLC.shape[0] not in (num_kv_heads, num_heads)
    ):
        raise ValueError(
            f"linformer: a projection must be [length, mixtures], for all heads, or have "
            f"{num_kv_heads} or {num_heads} of these, not the shape {x_NLC.shape}"
        )
    if num_keys > x_NLC.shape[-2]:
        raise ValueError(
            f"linformer: {num_keys} keys, but the projection was made for at most "
            f"{x_NLC.shape[-2]}; give shorter sequences or a longer projection"
        )
    return x_NLC[..., :num_keys, :]


def _mix(x_BSKH: jax.Array, projection_NSC: jax.Array) -> jax.Array:
    """Returns [B, C, K, H], or [B, C, N, H] for a projection per query head."""
    (B, S, K, H), C = x_BSKH.shape, projection_NSC.shape[-1]
    if projection_NSC.ndim == 2:
        y_YC = einsum("SY,SC->YC", x_BSKH.swapaxes(0, 1).reshape(S, -1), projection_NSC)
        return y_YC.reshape(B, K, H, C).transpose(0, 3, 1, 2)
    # Projections of the query heads of one key head stand side by side.
    G = projection_NSC.shape[0] // K
    projection_KSX = projection_NSC.reshape(K, G, S, C).swapaxes(1, 2).reshape(K, S, G * C)
    x_KSY = x_BSKH.transpose(2, 1, 0, 3).reshape(K, S, B * H)
    y_KYX = einsum("KSY,KSX->KYX", x_KSY, projection_KSX)
    return y_KYX.reshape(K, B, H, G, C).transpose(1, 4, 0, 3, 2).reshape(B, C, K * G, H)
