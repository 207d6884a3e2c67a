"""Attention whose heads are not independent, or share what keys and values are made of."""

from __future__ import annotations

import numpy as np

from jaxformer.ops.attention.differential import differential_attention
from jaxformer.ops.attention.latent import latent_attention
from tests.conformance import references
from tests.conformance.variant import Variant


def differential(q, k, v, *, offset, factor_n, **given):
    """In and out as others have it: two heads of values are one of twice the width."""
    B, S, K, H = k.shape
    v = v.reshape(B, S, K // 2, 2 * H)
    return differential_attention(q, k, v, factor=factor_n, **given).reshape(q.shape)


def factors(rng, case, **sizes):
    return {"factor_n": rng.uniform(0.2, 0.9, case.N // 2).astype(np.float32)}


R, ROPE = 6, 2  # widths of the latents, and of the part of queries and keys that is turned


def latent(q, c_BS1R, rope_BS1P, *, offset, **given):
    return latent_attention(q, c_BS1R[:, :, 0], rope_BS1P[:, :, 0], **given)


def latents(rng, case, **sizes):
    """Queries, and in place of keys and values the latents and rotary keys of all heads."""
    keys = (case.B, case.S, 1)
    shapes = (case.B, case.T, case.N, case.H), (*keys, R), (*keys, ROPE)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def of_latents(rng, case, **sizes):
    shapes = {"w_k_RNH": (R, case.N, case.H - ROPE), "w_v_RNX": (R, case.N, case.H)}
    return {n: rng.standard_normal(s).astype(np.float32) * 0.5 for n, s in shapes.items()}


ROWS = [
    Variant(
        "differential", differential, references.differential, own=factors, pairs=True,
    ),
    Variant(
        "latent", latent, references.latent, inputs=latents, own=of_latents,
        static={"absorbed": False},
    ),
    Variant(
        "latent, absorbed", latent, references.latent, inputs=latents, own=of_latents,
        static={"absorbed": True},
    ),
]  # fmt: skip
