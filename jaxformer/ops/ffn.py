"""The feed-forward half of a block: its activations, plain and gated.

Shapes: D model width, F feed-forward width; `...` anything (usually B batch, T time).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxformer.ops.linear import linear


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel, 2016, section 2; CLIP)."""
    return x * jax.nn.sigmoid(1.702 * x)


def relu2(x: jax.Array) -> jax.Array:
    """max(x, 0) squared (So et al., 2021, Primer)."""
    return jnp.square(jax.nn.relu(x))


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), exact (Hendrycks & Gimpel, 2016, eq. 1; BERT)."""
    return jax.nn.gelu(x, approximate=False)


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU's tanh approximation (Hendrycks & Gimpel, 2016, eq. 2; GPT-2, Gemma)."""
    return _gelu_tanh(x)[0].astype(x.dtype)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals, tangents):
    # Autodiff would keep several float32 arrays of the hidden width; this keeps the slope, once.
    (x,), (d_x,) = primals, tangents
    y, slope = _gelu_tanh(x)
    return y.astype(x.dtype), d_x * slope.astype(x.dtype)


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The value and the slope, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    c, a = math.sqrt(2.0 / math.pi), 0.044715
    t = jnp.tanh(c * x * (1 + a * x * x))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x)


# Gated with "silu" is SwiGLU, with "gelu" GEGLU, "relu" ReGLU, "sigmoid" GLU, "identity" Bilinear.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu2": relu2,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def feed_forward(
    x: jax.Array,
    w_in_DF: jax.Array,
    w_out_FD: jax.Array,
    *,
    b_in: jax.Array | None = None,
    b_out: jax.Array | None = None,
    activation: str = "gelu",
) -> jax.Array:
    """activation(x W_in + b_in) W_out + b_out (Vaswani et al., 2017, eq. 2).

    Args:
      x: [..., D].
      w_in_DF: the first weights.
      w_out_FD: the second weights.
      b_in: [F], or None.
      b_out: [D], or None.
      activation: a name of ACTIVATIONS.

    Returns:
      [..., D] in the dtype of `x`.

    Raises:
      ValueError: an unknown activation.
    """
    return linear(_activation(activation)(linear(x, w_in_DF, b_in)), w_out_FD, b_out)


def gated_feed_forward(
    x: jax.Array,
    w_gate_DF: jax.Array,
    w_up_DF: jax.Array,
    w_down_FD: jax.Array,
    *,
    b_gate: jax.Array | None = None,
    b_up: jax.Array | None = None,
    b_down: jax.Array | None = None,
    activation: str = "silu",
) -> jax.Array:
    """(activation(x W_gate) * (x W_up)) W_down, the GLU family (Shazeer, 2020, eq. 6).

    Args:
      x: [..., D].
      w_gate_DF: the weights whose product passes through the activation.
      w_up_DF: the weights whose product is gated.
      w_down_FD: the weights back to the model width.
      b_gate: [F], or None.
      b_up: [F], or None.
      b_down: [D], or None.
      activation: "silu" for SwiGLU, "gelu" GEGLU, "relu" ReGLU, "sigmoid" GLU, "identity" Bilinear.

    Returns:
      [..., D] in the dtype of `x`.

    Raises:
      ValueError: an unknown activation.
    """
    gate = _activation(activation)(linear(x, w_gate_DF, b_gate))
    return linear(gate * linear(x, w_up_DF, b_up), w_down_FD, b_down)


def _activation(name: str) -> Callable[[jax.Array], jax.Array]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
