"""Attention whose heads are not independent, or share what keys and values are made of."""

from __future__ import annotations

import numpy as np

from jaxformer.ops.attention.differential import differential_attention
from tests.conformance import references
from tests.conformance.variant import Variant


def differential(q, k, v, *, offset, factor_n, **given):
    """In and out as others have it: two heads of values are one of twice the width."""
    B, S, K, H = k.shape
    v = v.reshape(B, S, K // 2, 2 * H)
    return differential_attention(q, k, v, factor=factor_n, **given).reshape(q.shape)


def factors(rng, case, **sizes):
    return {"factor_n": rng.uniform(0.2, 0.9, case.N // 2).astype(np.float32)}


ROWS = [
    Variant(
        "differential", differential, references.differential, own=factors, pairs=True,
    ),
]  # fmt: skip
