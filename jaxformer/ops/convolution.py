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
    if history_BPD is None:
        history_BPD = jnp.zeros((x_BTD.shape[0], width - 1, channels), x_BTD.dtype)
    padded_BSD = jnp.concatenate([history_BPD.astype(x_BTD.dtype), x_BTD], axis=1)
    if segment_ids_BT is None:
        return _convolve(padded_BSD, kernel_WD)
    T = x_BTD.shape[1]
    total = jnp.zeros(x_BTD.shape, jnp.promote_types(x_BTD.dtype, jnp.float32))
    for i in range(width):
        before_BT = jnp.pad(segment_ids_BT, ((0, 0), (i, 0)))[:, :T]
        same_BT = (before_BT == segment_ids_BT) & (segment_ids_BT != 0)
        total += jnp.where(same_BT[..., None], _term(padded_BSD, kernel_WD, i), 0)
    return total.astype(x_BTD.dtype)


def _term(padded_BSD: jax.Array, kernel_WD: jax.Array, i: int) -> jax.Array:
    """What the input i steps back gives, in float32 or wider."""
    width, dtype = kernel_WD.shape[0], jnp.promote_types(padded_BSD.dtype, jnp.float32)
    past_BTD = _shifted(padded_BSD, width, width - 1 - i)
    return past_BTD.astype(dtype) * kernel_WD[i].astype(dtype)


def _shifted(padded_BSD: jax.Array, width: int, start: int) -> jax.Array:
    return padded_BSD[:, start : start + padded_BSD.shape[1] - width + 1]


@jax.custom_vjp
def _convolve(padded_BSD: jax.Array, kernel_WD: jax.Array) -> jax.Array:
    # The barrier keeps XLA from padding anew for every term, which is several times slower on CPU;
    # the gradient is written out for the same reason.
    padded_BSD = jax.lax.optimization_barrier(padded_BSD)
    total = sum(_term(padded_BSD, kernel_WD, i) for i in range(kernel_WD.shape[0]))
    return total.astype(padded_BSD.dtype)


def _forward(padded_BSD, kernel_WD):
    return _convolve(padded_BSD, kernel_WD), (padded_BSD, kernel_WD)


def _backward(residuals, g_BTD):
    padded_BSD, kernel_WD = residuals
    width, dtype = kernel_WD.shape[0], jnp.promote_types(padded_BSD.dtype, jnp.float32)
    sides = ((0, 0), (width - 1, width - 1), (0, 0))
    wide_g = jax.lax.optimization_barrier(jnp.pad(g_BTD, sides))
    T = padded_BSD.shape[1]
    # Input s reached output t = s - (width - 1) + i through row i.
    d_padded = sum(
        wide_g[:, i : i + T].astype(dtype) * kernel_WD[i].astype(dtype) for i in range(width)
    )
    g = g_BTD.astype(dtype)
    d_kernel = jnp.stack(
        [
            jnp.sum(_shifted(padded_BSD, width, width - 1 - i).astype(dtype) * g, axis=(0, 1))
            for i in range(width)
        ]
    )
    return d_padded.astype(padded_BSD.dtype), d_kernel.astype(kernel_WD.dtype)


_convolve.defvjp(_forward, _backward)
