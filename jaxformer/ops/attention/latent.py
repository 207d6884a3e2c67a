"""Multi-head latent attention: keys and values of all heads come from one short vector a token.

DeepSeek-AI, 2024, "DeepSeek-V2", section 2.1. A token is remembered by its latent and by one
rotary key that all heads share, R + P numbers in place of 2 N H.

Shapes: B batch, T queries, S keys, N heads, R width of the latent, H width of a head's content
(queries and keys), P width of its rotary part, A = H + P, X width of a head's values.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention.api import attention
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask


def latent_attention(
    q_BTNA: jax.Array,
    c_BSR: jax.Array,
    k_rope_BSP: jax.Array,
    *,
    w_k_RNH: jax.Array,
    w_v_RNX: jax.Array,
    absorbed: bool | None = None,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    return_weights: bool = False,
    **asked: Any,
) -> Any:
    """Attention over keys [c w_k | k_rope] and values c w_v (DeepSeek-AI, 2024, section 2.1).

    Args:
      q_BTNA: queries: H channels of content, then P that are turned by their position.
      c_BSR: latents, normalised as the paper's code has it.
      k_rope_BSP: the keys' rotary part, turned, alike for all heads.
      w_k_RNH: what makes a head's keys of a latent.
      w_v_RNX: what makes its values.
      absorbed: False: keys and values are made for each head. True: w_k meets the queries and w_v
        what was read, so that all heads read the latents themselves, as multi-query attention does
        (section 2.1.2). Equal but for rounding (and for which weights a dropout key drops); None:
        whichever multiplies less, which in a decode step is True.
      mask: as in `attention`.
      bias: as in `attention`.
      scale: multiplies q k^T; 1/sqrt(H + P) if None.
      return_weights: as in `attention`.
      **asked: soft_cap, dropout_rate, key, backend, query_chunk, key_chunk as in `attention`.

    Returns:
      out_BTNX in the dtype of the queries, exactly 0 where nothing is seen, or (out_BTNX,
      weights_BNTS).

    Raises:
      ValueError: shapes that do not fit, or what `attention` raises.
    """
    _check(q_BTNA, c_BSR, k_rope_BSP, w_k_RNH, w_v_RNX)
    (T, N, A), (S, R) = q_BTNA.shape[1:], c_BSR.shape[1:]
    H, P, X, dtype = w_k_RNH.shape[2], k_rope_BSP.shape[2], w_v_RNX.shape[2], q_BTNA.dtype
    c_BSR, k_rope_BSP, w_k_RNH, w_v_RNX = (
        x.astype(dtype) for x in (c_BSR, k_rope_BSP, w_k_RNH, w_v_RNX)
    )
    asked |= {"mask": mask, "bias": bias, "return_weights": return_weights}
    asked["scale"] = 1.0 / math.sqrt(A) if scale is None else scale
    if absorbed is None:
        absorbed = absorbing_is_less(T, S, latent=R, content=H, rope=P, values=X)

    if absorbed:
        q_BTNR = einsum("BTNH,RNH->BTNR", q_BTNA[..., :H], w_k_RNH)
        q = jnp.concatenate([q_BTNR, q_BTNA[..., H:]], axis=-1)
        # The keys serve as values too: of what is read, the first R channels are latents.
        k = v = jnp.concatenate([c_BSR, k_rope_BSP], axis=-1)[:, :, None]
    else:
        k_BSNH = einsum("BSR,RY->BSY", c_BSR, w_k_RNH.reshape(R, N * H)).reshape(-1, S, N, H)
        v = einsum("BSR,RY->BSY", c_BSR, w_v_RNX.reshape(R, N * X)).reshape(-1, S, N, X)
        k_rope = jnp.broadcast_to(k_rope_BSP[:, :, None], (*k_BSNH.shape[:3], P))
        k = jnp.concatenate([k_BSNH, k_rope], axis=-1)
        # Zeros make all of one width, and change neither a logit nor what is read.
        q, k, v = (masks.lengthen(x, 3, max(A, X)) for x in (q_BTNA, k, v))
    result = attention(q, k, v, **asked)
    out, weights = result if return_weights else (result, None)
    out = einsum("BTNR,RNX->BTNX", out[..., :R], w_v_RNX) if absorbed else out[..., :X]
    return (out, weights) if return_weights else out


def absorbing_is_less(
    num_queries: int, num_keys: int, *, latent: int, content: int, rope: int, values: int
) -> bool:
    """Whether the absorbed form of `latent_attention` multiplies less, a head and a row.

    Args:
      num_queries: T.
      num_keys: S.
      latent: R.
      content: H.
      rope: P.
      values: X.
    """
    pairs, up = num_queries * num_keys, latent * (content + values)
    made = num_keys * up + pairs * 2 * max(content + rope, values)
    return num_queries * up + pairs * 2 * (latent + rope) < made


def _check(q_BTNA, c_BSR, k_rope_BSP, w_k_RNH, w_v_RNX) -> None:
    q, c, r, w_k, w_v = (x.shape for x in (q_BTNA, c_BSR, k_rope_BSP, w_k_RNH, w_v_RNX))
    if [len(x) for x in (q, c, r, w_k, w_v)] != [4, 3, 3, 3, 3]:
        raise ValueError(
            "latent_attention: q needs 4 axes [B, T, N, H + P], the latents, rotary keys and "
            f"weights 3, not {q}, {c}, {r}, {w_k} and {w_v}"
        )
    if c[:2] != r[:2] or q[0] != c[0]:
        raise ValueError(
            f"latent_attention: queries {q}, latents {c} and rotary keys {r} differ in rows or keys"
        )
    if w_k[:2] != w_v[:2] or w_k[:2] != (c[2], q[2]):
        raise ValueError(
            f"latent_attention: w_k {w_k} and w_v {w_v} must be [R, N, ...] of latents {c} and "
            f"queries {q}"
        )
    if q[3] != w_k[2] + r[2]:
        raise ValueError(
            f"latent_attention: queries {q[3]} wide must be as wide as w_k's keys and the rotary "
            f"part, {w_k[2]} + {r[2]}"
        )
