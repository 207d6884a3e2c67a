"""Short causal convolutions over time, one filter a channel.

Shapes: B batch, T time, D channels, W width of the filter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def short_conv(
    x_BTD: jax.Array,
    kernel_WD: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    history_BPD: jax.Array | None = None,
) -> jax.Array:
    """Causal depthwise convolution: out_t = sum over i < W of kernel_i * x_(t - i).

    A cheap way to see the last few tokens, as in Primer (So et al. 2021, section 4.2, there on
    queries, keys and values).

    Args:
      x_BTD: the input; before its start there are zeros, or `history_BPD`.
      kernel_WD: one filter a channel; row 0 is for the present, row i for i steps back.
      segment_ids_BT: tokens see their own segment only (0, padding, sees and is seen by nothing).
      history_BPD: the W - 1 inputs before x, for decoding step by step.

    Returns:
      [B, T, D] in x's dtype, summed in float32.

    Raises:
      ValueError: shapes that do not fit, or segments together with a history.
    """
    width, channels = kernel_WD.shape
    if x_BTD.ndim != 3 or x_BTD.shape[2] != channels:
        raise ValueError(f"short_conv: x {x_BTD.shape} does not fit kernel {kernel_WD.shape}")
    if history_BPD is not None:
        if segment_ids_BT is not None:
            raise ValueError("short_conv: zero the padding of x; a history has no segments")
        if history_BPD.shape[1] != width - 1:
            raise ValueError(f"short_conv: a history of {history_BPD.shape[1]}, not {width - 1}")
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)
    T = x_BTD.shape[1]
    if history_BPD is None:
        padded = jnp.pad(x_BTD, ((0, 0), (width - 1, 0), (0, 0)))
    else:
        padded = jnp.concatenate([history_BPD.astype(x_BTD.dtype), x_BTD], axis=1)
    out = jnp.zeros(x_BTD.shape, dtype)
    for i in range(width):
        past_BTD = padded[:, width - 1 - i : width - 1 - i + T]
        term = past_BTD.astype(dtype) * kernel_WD[i].astype(dtype)
        if segment_ids_BT is not None:
            before_BT = jnp.pad(segment_ids_BT, ((0, 0), (i, 0)))[:, :T]
            same_BT = (before_BT == segment_ids_BT) & (segment_ids_BT != 0)
            term = jnp.where(same_BT[..., None], term, 0)
        out = out + term
    return out.astype(x_BTD.dtype)
