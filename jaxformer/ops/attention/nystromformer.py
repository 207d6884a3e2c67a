"""Nyströmformer: softmax attention rebuilt from its values at a few landmarks, in linear time.

Xiong et al., 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention".
With landmarks q~ and k~, the means of equal parts of the line, the matrix of weights is nearly
softmax(q k~^T) · pinv(softmax(q~ k~^T)) · softmax(q~ k^T) (section 3).

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, P and R landmarks of
queries and of keys, W width of the convolution, C tokens of a block.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention.api import attention
from jaxformer.ops.attention.plain_mask import PlainMask, plain_mask, without_order
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

_WHY = "each landmark is a mean over a part of the line"
_CONVOLUTION_BLOCK = 128


def nystromformer(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    num_landmarks: int = 64,
    iterations: int = 6,
    start: str = "matrix",
    kernel_NW: jax.Array | None = None,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    return_weights: bool = False,
) -> Any:
    """Attention by Nyström's method (Xiong et al., 2021, section 3), in O((T + S) num_landmarks).

    With as many landmarks as tokens it is softmax attention, and computed as such (so does the
    published code: the iteration would not have converged).

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      num_landmarks: parts of the line; their sizes differ by at most one token. Hidden tokens are
        left out of the means (the published code averages padding too), and a part without any
        token is left out of everything.
      iterations: steps of the iteration for the pseudo-inverse.
      start: how the iteration is scaled at first: by the largest column sum of each "matrix", or
        by the largest of all "global" (the published code's default: it converges more slowly, and
        what a row gets depends a little on the rest of its batch).
      kernel_NW: a depthwise convolution over the values' places, one filter per head, W odd,
        added to the output (as published W = 33); needs T == S. None: none.
      mask: None, or parts joined by `&` that hide padding: `masks.lengths`, and `explicit` of
        shape [B, 1, 1, S] or [B, 1, T, 1].
      bias: must be None: landmarks have no single place.
      scale: that of the softmax; 1/sqrt(H) if None.
      return_weights: return float32 [B, N, T, S] too, at O(T S): the product of the three, without
        the convolution. They may be negative; rows sum to nearly 1.

    Returns:
      out_BTNH in the dtype of the queries, or (out_BTNH, weights_BNTS).

    Raises:
      ValueError: a causal or packed mask, a bias, or arguments that do not fit.
    """
    name = "nystromformer"
    if bias is not None:
        raise ValueError(f"{name}: cannot honour a bias, for landmarks have no place; give None")
    if num_landmarks < 1 or iterations < 1 or start not in ("global", "matrix"):
        raise ValueError(
            f"{name}: needs num_landmarks >= 1, iterations >= 1 and start 'global' or 'matrix', "
            f"not {num_landmarks}, {iterations} and {start!r}"
        )
    (T, N, H), S = q_BTNH.shape[1:], k_BSKH.shape[1]
    _check_kernel(kernel_NW, T, S, N)
    plain = without_order(plain_mask(mask, name, T, S), name, why=_WHY)
    scale = H**-0.5 if scale is None else scale
    if num_landmarks >= max(T, S):
        both = None if mask is None else _visible(plain.q_ids_BT != 0, plain.k_ids_BS != 0)
        result = attention(
            q_BTNH, k_BSKH, v_BSKH, mask=both, scale=scale, return_weights=return_weights
        )
        out_BTNH, weights_BNTS = result if return_weights else (result, None)
    else:
        out_BTNH, weights_BNTS = _by_landmarks(
            q_BTNH, k_BSKH, v_BSKH, plain, mask is None, num_landmarks, iterations, start, scale,
            return_weights,
        )  # fmt: skip
    if kernel_NW is not None:
        seen_v_BSKH = jnp.where((plain.k_ids_BS != 0)[:, :, None, None], v_BSKH, 0)
        near_BTNH = _convolve(jnp.repeat(seen_v_BSKH, N // v_BSKH.shape[2], axis=2), kernel_NW)
        asks_BT11 = (plain.q_ids_BT != 0)[:, :, None, None]
        out_BTNH += jnp.where(asks_BT11, near_BTNH, 0).astype(out_BTNH.dtype)
    return (out_BTNH, weights_BNTS) if return_weights else out_BTNH


def pseudo_inverse(a_PR: jax.Array, iterations: int = 6, *, start: str = "matrix") -> jax.Array:
    """The Moore-Penrose inverse by an iteration of matmuls (Xiong et al., 2021, section 3).

    Args:
      a_PR: float32 [..., P, R], nonnegative, with row sums of at most 1.
      iterations: its steps.
      start: "matrix" or "global"; see `nystromformer`.

    Returns:
      [..., R, P].
    """
    columns_R = a_PR.sum(axis=-2)
    most = columns_R.max() if start == "global" else columns_R.max(axis=-1)[..., None, None]
    z_RP = a_PR.swapaxes(-1, -2) / jnp.where(most == 0.0, 1.0, most)
    one_PP = jnp.eye(a_PR.shape[-2], dtype=a_PR.dtype)
    for _ in range(iterations):
        az_PP = a_PR @ z_RP
        z_RP = 0.25 * z_RP @ (13 * one_PP - az_PP @ (15 * one_PP - az_PP @ (7 * one_PP - az_PP)))
    return z_RP


def _by_landmarks(q, k, v, plain: PlainMask, unmasked, number, iterations, start, scale, weighed):
    """Returns (out_BTNH, weights_BNTS or None)."""
    N = q.shape[2]
    q_BPNH, q_real_BP = _landmarks(q, plain.q_ids_BT != 0, number)
    k_BRKH, k_real_BR = _landmarks(k, plain.k_ids_BS != 0, number)
    k_BRNH = jnp.repeat(k_BRKH, N // k_BRKH.shape[2], axis=2)
    queries_BT, keys_BS = plain.q_ids_BT != 0, plain.k_ids_BS != 0
    middle = None if unmasked else _visible(q_real_BP, k_real_BR)
    to_keys = {"mask": None if unmasked else _visible(None, keys_BS), "scale": scale}
    to_landmarks = {"mask": None if unmasked else _visible(queries_BT, k_real_BR), "scale": scale}
    # The middle matrix as weights of a small attention, in float32.
    a_BNPR = attention(
        q_BPNH, k_BRNH, k_BRNH, mask=middle, scale=scale, backend="dense", return_weights=True
    )[1]
    inverse_BNRP = pseudo_inverse(a_BNPR, iterations, start=start)
    read_BPNH = attention(q_BPNH, k, v, **to_keys)
    mixed_BRNH = einsum("BNRP,BPNH->BRNH", inverse_BNRP, read_BPNH).astype(v.dtype)
    out_BTNH = attention(q, k_BRNH, mixed_BRNH, **to_landmarks)
    if not weighed:
        return out_BTNH, None
    left_BNTR = attention(q, k_BRNH, k_BRNH, return_weights=True, **to_landmarks)[1]
    right_BNPS = attention(q_BPNH, k, v, return_weights=True, **to_keys)[1]
    return out_BTNH, left_BNTR @ inverse_BNRP @ right_BNPS


def _visible(queries_BT: jax.Array | None, keys_BS: jax.Array) -> Mask:
    """Returns the mask that lets these queries (None: all) see these keys."""
    mask = masks.explicit(keys_BS[:, None, None])
    return mask if queries_BT is None else mask & masks.explicit(queries_BT[:, None, :, None])


def _landmarks(x_BTNH: jax.Array, seen_BT: jax.Array, number: int):
    """Returns the means [B, P, N, H] of what is seen in each part, and whether anything is."""
    number = min(number, x_BTNH.shape[1])
    weight_BT11 = seen_BT[:, :, None, None].astype(jnp.float32)
    total = _parts(x_BTNH.astype(jnp.float32) * weight_BT11, number)
    count = _parts(weight_BT11, number)
    means = (total / jnp.maximum(count, 1.0)).astype(x_BTNH.dtype)
    return means, jnp.broadcast_to(count[:, :, 0, 0] > 0, (count.shape[0], number))


def _parts(x_BT: jax.Array, number: int) -> jax.Array:
    """Returns the sums [B, P, ...] over parts of the line, the longer ones last."""
    B, T, *rest = x_BT.shape
    size, longer = divmod(T, number)
    shorter = number - longer
    cut = shorter * size
    first = x_BT[:, :cut].reshape(B, shorter, size, *rest).sum(axis=2)
    last = x_BT[:, cut:].reshape(B, longer, size + 1, *rest).sum(axis=2)
    return jnp.concatenate([first, last], axis=1) if longer else first


def _check_kernel(kernel_NW, T: int, S: int, N: int) -> None:
    if kernel_NW is None:
        return
    if kernel_NW.ndim != 2 or kernel_NW.shape[0] != N or kernel_NW.shape[1] % 2 == 0:
        raise ValueError(
            f"nystromformer: kernel_NW must be [{N}, an odd width], not {kernel_NW.shape}"
        )
    if T != S:
        raise ValueError(
            f"nystromformer: a convolution needs as many queries as keys, not {T}, {S}"
        )


def _convolve(v_BTNH: jax.Array, kernel_NW: jax.Array) -> jax.Array:
    """Returns sum over i of kernel_i v_(t + i - W//2): a banded matrix times each block of values.

    On a CPU one matmul by the band is several times faster than W shifted sums.
    """
    (B, T, N, H), W = v_BTNH.shape, kernel_NW.shape[1]
    C = min(_CONVOLUTION_BLOCK, T)
    n = -(-T // C)
    padded = jnp.pad(v_BTNH, ((0, 0), (W // 2, n * C - T + W // 2), (0, 0), (0, 0)))
    places_nX = jnp.arange(n)[:, None] * C + jnp.arange(C + W - 1)
    blocks_NXY = padded[:, places_nX].transpose(3, 2, 0, 1, 4).reshape(N, C + W - 1, B * n * H)
    # Row c of the band holds the filter from column c on.
    band_NCX = jnp.stack([jnp.pad(kernel_NW, ((0, 0), (c, C - 1 - c))) for c in range(C)], axis=1)
    out_NCY = einsum("NCX,NXY->NCY", band_NCX.astype(v_BTNH.dtype), blocks_NXY)
    out_BnCNH = out_NCY.reshape(N, C, B, n, H).transpose(2, 3, 1, 0, 4)
    return out_BnCNH.reshape(B, n * C, N, H)[:, :T]
