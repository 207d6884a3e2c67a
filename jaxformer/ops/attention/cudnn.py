"""cuDNN's fused attention, where it can do what is asked; it needs an NVIDIA GPU.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.masks import Causal, Lengths, Mask, Window


class Expressed(NamedTuple):
    """A mask in cuDNN's words."""

    is_causal: bool = False
    window: tuple[int, int] | None = None
    kv_lengths_B: jax.Array | None = None


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, mask: Mask | None, scale: float
) -> jax.Array:
    """See `jaxformer.ops.attention.attention`; the caller has asked `why_not` before."""
    expressed = express(mask, q_BTNH.shape[1], k_BSKH.shape[1])
    assert isinstance(expressed, Expressed)
    lengths_B = expressed.kv_lengths_B
    if lengths_B is not None:
        lengths_B = jnp.broadcast_to(lengths_B, q_BTNH.shape[:1])
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=scale,
        is_causal=expressed.is_causal,
        local_window_size=expressed.window,
        # What cuDNN makes of no key at all is not promised: let it see one, and erase the result.
        key_value_seq_lengths=None if lengths_B is None else jnp.maximum(lengths_B, 1),
        implementation="cudnn",
    )
    if lengths_B is None:
        return out_BTNH
    return jnp.where(lengths_B[:, None, None, None] > 0, out_BTNH, 0)


def why_not(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    *,
    mask: Mask | None,
    bias: Any,
    soft_cap: float | None,
    dropout_rate: float,
    return_weights: bool,
    compute_capability: float,
) -> str:
    """Returns why cuDNN cannot do this, or "" if it can.

    Args:
      compute_capability: of the GPU, such as 9.0 for Hopper; 0 for none. See `gpu_capability`.
    """
    expressed = express(mask, q_BTNH.shape[1], k_BSKH.shape[1])
    widest = 256 if compute_capability >= 9.0 else 128
    head_dim = q_BTNH.shape[-1]
    reasons = {
        "there is no NVIDIA GPU of capability 8.0 or more": compute_capability < 8.0,
        f"it wants float16 or bfloat16, not {q_BTNH.dtype}": q_BTNH.dtype
        not in (jnp.float16, jnp.bfloat16),
        "queries and keys differ in dtype": q_BTNH.dtype != k_BSKH.dtype,
        f"it wants a head width in multiples of 8 up to {widest}, not {head_dim}": head_dim % 8 > 0
        or head_dim > widest,
        "it takes no bias here": bias is not None,
        "it has no soft cap": soft_cap is not None,
        "it has no dropout here": dropout_rate > 0.0,
        "it does not return the weights": return_weights,
        str(expressed): isinstance(expressed, str),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def express(mask: Mask | None, num_queries: int, num_keys: int) -> Expressed | str:
    """Returns the mask in cuDNN's words, or the reason why it has none."""
    causal, window, lengths_B = False, None, None
    for part in masks.parts(mask):
        if isinstance(part, Lengths):
            shorter = part.kv_lengths_B.astype(jnp.int32)
            lengths_B = shorter if lengths_B is None else jnp.minimum(lengths_B, shorter)
        elif isinstance(part, (Causal, Window)):
            if not isinstance(part.offset, int) or part.offset != 0 or num_queries != num_keys:
                return "causal masks and windows need offset 0 and as many queries as keys"
            if isinstance(part, Causal):
                causal = True
            elif window is not None:
                return "it takes one window"
            else:
                window = part
        else:
            return f"a mask of kind {type(part).__name__.lower()} is beyond it"
    if window is None:
        return Expressed(causal, None, lengths_B)
    if window.right > 0 and not causal:
        return "a window must be causal (right=0)"
    if lengths_B is not None:
        return "a window with lengths may leave a query without any key"
    return Expressed(True, (window.left, 0), None)


def gpu_capability() -> float:
    """Returns the default device's CUDA compute capability, or 0.0 if it is no NVIDIA GPU."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return 0.0
    try:
        return float(device.compute_capability)
    except ValueError:  # an AMD GPU calls itself gfx90a or the like
        return 0.0
