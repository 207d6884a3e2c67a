"""Normalisation over the last axis, its statistics in float32 whatever the input dtype.

The gradients are written out: they keep the input and two numbers a row, and recompute the rest,
which autodiff would keep in float32. That halves the time on a CPU.

Shapes: D the normalised width; `...` anything.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxformer.ops.linear import vary_alike


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    eps: float = 1e-5,
) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation (Ba et al., 2016, eq. 4).

    Args:
      x: [..., D], any float dtype.
      scale: [D] gain, or None.
      bias: [D] shift, or None.
      eps: added to the variance (BERT 1e-12, GPT-2 1e-5).

    Returns:
      [..., D] in the dtype of `x`.
    """
    return _normalise(True, eps, *vary_alike(x, scale, bias))


def rms_norm(
    x: jax.Array, scale: jax.Array | None = None, *, eps: float = 1e-6, offset: float = 0.0
) -> jax.Array:
    """Divides by the root mean square (Zhang & Sennrich, 2019, eq. 4).

    Args:
      x: [..., D], any float dtype.
      scale: [D] gain, or None.
      eps: added to the mean square.
      offset: added to the gain; 1.0 gives Gemma's (1 + weight), whose weight starts at 0.

    Returns:
      [..., D] in the dtype of `x`.
    """
    if scale is not None and offset:
        scale = scale.astype(_statistics(x)) + offset
    x, scale = vary_alike(x, scale)
    return _normalise(False, eps, x, scale, None)


def _statistics(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalise(centred: bool, eps: float, x, scale, bias) -> jax.Array:
    return _forward(centred, eps, x, scale, bias)[0]


def _forward(centred, eps, x, scale, bias):
    wide = x.astype(_statistics(x))
    mean = wide.mean(axis=-1, keepdims=True) if centred else jnp.zeros((), wide.dtype)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + eps)
    y = (wide - mean) * inverse
    if scale is not None:
        y = y * scale.astype(wide.dtype)
    if bias is not None:
        y = y + bias.astype(wide.dtype)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(centred, eps, residuals, g):
    del eps
    x, mean, inverse, scale, bias = residuals
    wide, g = x.astype(_statistics(x)), g.astype(_statistics(x))
    unit = (wide - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    d_scale = None if scale is None else (g * unit).sum(rows).astype(scale.dtype)
    d_bias = None if bias is None else g.sum(rows).astype(bias.dtype)
    d_unit = g if scale is None else g * scale.astype(wide.dtype)
    d_x = d_unit - unit * (d_unit * unit).mean(axis=-1, keepdims=True)
    if centred:
        d_x = d_x - d_unit.mean(axis=-1, keepdims=True)
    return (d_x * inverse).astype(x.dtype), d_scale, d_bias


_normalise.defvjp(_forward, _backward)
