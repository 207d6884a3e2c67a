"""One signature for attention, and the choice of who computes it.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxformer.ops.attention import scores
from jaxformer.ops.attention.chunked import chunked
from jaxformer.ops.attention.dense import dense
from jaxformer.ops.masks import Mask

BACKENDS = ("auto", "dense", "chunked", "cudnn")


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    backend: str = "auto",
    query_chunk: int = 128,
    key_chunk: int = 512,
    return_weights: bool = False,
) -> Any:
    """softmax(scale q k^T + bias, where masked -inf) v (Vaswani et al., 2017, eq. 1)."""
    _check(q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key, backend)
    options = {
        "mask": mask,
        "bias": scores.as_bias(bias),
        "scale": 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale,
        "soft_cap": soft_cap,
        "dropout_rate": dropout_rate,
        "key": key if dropout_rate > 0.0 else None,
        "query_chunk": query_chunk,
        "return_weights": return_weights,
    }
    if backend == "chunked":
        return chunked(q_BTNH, k_BSKH, v_BSKH, key_chunk=key_chunk, **options)
    return dense(q_BTNH, k_BSKH, v_BSKH, **options)


def _check(q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key, backend) -> None:
    q, k, v = q_BTNH.shape, k_BSKH.shape, v_BSKH.shape
    if not len(q) == len(k) == len(v) == 4:
        raise ValueError(f"attention: q, k and v need 4 axes [B, T, N, H], not {q}, {k} and {v}")
    if k != v:
        raise ValueError(f"attention: keys {k} and values {v} must have one shape [B, S, K, H]")
    if q[0] != k[0] or q[3] != k[3]:
        raise ValueError(f"attention: queries {q} and keys {k} differ in batch or head width")
    if q[2] % k[2]:
        raise ValueError(f"attention: {k[2]} key/value heads do not divide {q[2]} query heads")
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError(
            "attention: the mask must be a spec; wrap an array as masks.explicit(array)"
        )
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"attention: the dropout rate must be in [0, 1), not {dropout_rate}")
    if dropout_rate > 0.0 and key is None:
        raise ValueError(
            "attention: dropout_rate > 0 needs a key; in evaluation give dropout_rate=0"
        )
    if backend not in BACKENDS:
        raise ValueError(f"attention: backend {backend!r} is not one of {', '.join(BACKENDS)}")
