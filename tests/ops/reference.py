"""Attention as the formula says, in float64 numpy: what every backend is compared with."""

from __future__ import annotations

import numpy as np


def attention(q, k, v, mask=None, bias=None, scale=None, soft_cap=None):
    """Returns (out_BTNH, weights_BNTS); a query that sees nothing gets zeros."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    logits = scale * np.einsum("btnh,bsnh->bnts", q, k)
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64)
    if mask is not None:
        logits = np.where(np.asarray(mask), logits, -np.inf)
    top = logits.max(axis=-1, keepdims=True)
    p = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    total = p.sum(axis=-1, keepdims=True)
    weights = p / np.where(total == 0, 1.0, total)
    return np.einsum("bnts,bsnh->btnh", weights, v), weights
