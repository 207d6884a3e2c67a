"""One signature for attention, and the choice of who computes it.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxformer.ops.attention import scores
from jaxformer.ops.attention.blocked import blocked
from jaxformer.ops.attention.chunked import attend, chunked
from jaxformer.ops.attention.cudnn import cudnn, gpu_capability, why_not
from jaxformer.ops.attention.dense import dense
from jaxformer.ops.masks import Mask

BACKENDS = ("auto", "dense", "chunked", "cudnn")

# Up to here "auto" holds all weights, beyond it recomputes them (measured on CPU: below it dense is
# faster, above it the weights of one layer outgrow the caches and soon the memory).
DENSE_UP_TO = 2048 * 2048


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    backend: str = "auto",
    query_chunk: int | None = None,
    key_chunk: int | None = None,
    return_weights: bool = False,
    return_lse: bool = False,
) -> Any:
    """softmax(scale q k^T + bias, -inf where masked) v, head by head (Vaswani et al., 2017, eq. 1).

    A query that may attend to nothing gets exactly 0, and finite gradients, from every backend.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N, and query head n reads key/value head n // (N / K) (Ainslie et
        al., 2023).
      v_BSKH: values.
      mask: a spec of `masks`, or None: all may attend to all.
      bias: added to the logits: an array that broadcasts to [B, N, T, S], or a spec such as
        `positions.alibi(N)`, which never becomes one. Receives gradients.
      scale: multiplies q k^T; 1/sqrt(H) if None (T5: 1.0).
      soft_cap: squashes the scaled logits to cap * tanh(logits / cap) before bias and mask (Gemma
        Team, 2024, section 2).
      dropout_rate: static probability of dropping a weight.
      key: random key, needed if dropout_rate > 0. The same key drops the same weights in forward
        and backward, but other ones in another backend or with other chunks.
      backend: "dense" holds the weights; "chunked" recomputes them and needs O(T) memory, forward
        and backward (no forward-mode derivatives); "cudnn" is NVIDIA's kernel for float16 and
        bfloat16; "auto" takes cudnn where it can do the job, else dense up to 2048 x 2048 (on CPU
        in an equal form that is faster there, reverse-mode only) and chunked beyond.
      query_chunk: queries of one block: None for the backend's own. The dense backend cuts
        queries into blocks only where a static mask spares them some keys.
      key_chunk: keys of one block in the chunked backend; None for its own.
      return_weights: also return the weights, before dropout; from any backend but cudnn they cost
        O(T S) memory. `attention_weights` gives those of a few heads and rows for their own size.
      return_lse: also return the log of the softmax's denominator, for `attention_weights` and to
        join partial results; always by the chunked backend. Not together with return_weights.

    Returns:
      out_BTNH in the dtype of the queries, or (out_BTNH, weights_BNTS) with float32 weights whose
      rows sum to 1 (0 where nothing is visible), or (out_BTNH, lse_BNT), float32, -inf there.

    Raises:
      ValueError: shapes that do not fit, dropout without a key, or backend "cudnn" where cuDNN
        cannot do what is asked; the message gives the reason.
    """
    _check(q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key, backend, query_chunk, key_chunk)
    if isinstance(scale, jax.Array):
        q_BTNH, scale = (q_BTNH * scale).astype(q_BTNH.dtype), 1.0
    scale = 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    options: dict[str, Any] = {
        "mask": mask,
        "bias": scores.as_bias(bias),
        "soft_cap": soft_cap,
        "dropout_rate": dropout_rate,
        "return_weights": return_weights,
    }
    if return_lse:
        if return_weights or backend == "cudnn":
            other = "return_weights" if return_weights else "backend='cudnn'"
            raise ValueError(f"attention: return_lse cannot go with {other}; leave one out")
        del options["return_weights"]
        return attend(
            q_BTNH, k_BSKH, v_BSKH, scale=scale, key=key if dropout_rate > 0.0 else None,
            query_chunk=query_chunk, key_chunk=key_chunk, **options,
        )  # fmt: skip
    if backend in ("auto", "cudnn"):
        reason = why_not(q_BTNH, k_BSKH, compute_capability=gpu_capability(), **options)
        if not reason:
            return cudnn(q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale)
        if backend == "cudnn":
            raise ValueError(f"attention: cuDNN cannot do this: {reason}; use backend='auto'")
    options |= {"scale": scale, "key": key if dropout_rate > 0.0 else None}
    small = q_BTNH.shape[1] * k_BSKH.shape[1] <= DENSE_UP_TO
    plain = bias is None and soft_cap is None and not dropout_rate and not return_weights
    if backend == "auto" and small and plain and _fast_on_cpu(q_BTNH, k_BSKH):
        return blocked(q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale, query_chunk=query_chunk)
    if backend == "dense" or (backend == "auto" and small):
        return dense(q_BTNH, k_BSKH, v_BSKH, query_chunk=query_chunk, **options)
    return chunked(q_BTNH, k_BSKH, v_BSKH, query_chunk=query_chunk, key_chunk=key_chunk, **options)


def _fast_on_cpu(q_BTNH: jax.Array, k_BSKH: jax.Array) -> bool:
    return (
        jax.default_backend() == "cpu"
        and q_BTNH.shape[1] > 1  # one query is a matrix times a vector: nothing to orient
        and k_BSKH.shape[1] > 0
        and q_BTNH.dtype == k_BSKH.dtype
    )


def _check(
    q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key, backend, query_chunk, key_chunk
) -> None:
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
        raise ValueError("attention: mask must be a spec; wrap an array as masks.explicit(array)")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"attention: dropout_rate must be in [0, 1), not {dropout_rate}")
    if dropout_rate > 0.0 and key is None:
        raise ValueError("attention: dropout_rate > 0 needs a key; for evaluation give rate 0")
    if backend not in BACKENDS:
        raise ValueError(f"attention: backend {backend!r} is not one of {', '.join(BACKENDS)}")
    for name, size in (("query_chunk", query_chunk), ("key_chunk", key_chunk)):
        if size is not None and size < 1:
            raise ValueError(f"attention: {name} must be 1 or more, not {size}")
