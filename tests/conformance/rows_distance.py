"""Attention by distance: Transformer-XL's and XLNet's relative attention."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks
from jaxformer.ops.attention.relative import distance_waves, relative_attention
from tests.conformance import references
from tests.conformance.variant import Variant

D = 8


def relative(q, k, v, *, mask, offset, w_distance_DNH, **biases):
    T, S = q.shape[1], k.shape[1]
    first = T - 1 + S - 1  # of a query anywhere among the keys
    waves_RD = distance_waves(first, 1 - S, D)
    return relative_attention(
        q,
        k,
        v,
        waves_RD=waves_RD,
        w_distance_DNH=w_distance_DNH,
        first=first,
        offset=offset,
        mask=mask,
        **biases,
    )


def of_distances(rng, case, **sizes):
    shapes = {
        "w_distance_DNH": (D, case.N, case.H),
        "content_bias_NH": (case.N, case.H),
        "distance_bias_NH": (case.N, case.H),
    }
    return {n: rng.standard_normal(s).astype(np.float32) * 0.5 for n, s in shapes.items()}


def two_streams(q, k, v, *, mask, offset, g_BTNH, order_S, **own):
    """Both streams' sum: queries that see their own token, and those that predict it."""
    of_query_T1 = jnp.take(order_S, offset + jnp.arange(q.shape[1]))[:, None]

    def stream(q, may_TS):
        may = masks.explicit(may_TS)
        return relative(q, k, v, mask=may if mask is None else mask & may, offset=offset, **own)

    return stream(q, order_S <= of_query_T1) + stream(g_BTNH.astype(q.dtype), order_S < of_query_T1)


def of_streams(rng, case, **sizes):
    own = of_distances(rng, case)
    of_heads = {"segment_bias_NH": (case.N, case.H), "segment_2NH": (2, case.N, case.H),
                "g_BTNH": (case.B, case.T, case.N, case.H)}  # fmt: skip
    own |= {n: rng.standard_normal(s).astype(np.float32) * 0.5 for n, s in of_heads.items()}
    types_BS = rng.integers(0, 2, (case.B, case.S)).astype(np.int32)
    of_queries_BT = types_BS[:, case.offset : case.offset + case.T]
    order_S = rng.permutation(case.S).astype(np.int32)
    return own | {"k_types_BS": types_BS, "q_types_BT": of_queries_BT, "order_S": order_S}


ROWS = [
    Variant("Transformer-XL relative", relative, references.relative, own=of_distances),
    Variant(
        "XLNet two streams", two_streams, references.two_streams, own=of_streams,
        per_row=("g_BTNH", "q_types_BT", "k_types_BS"), per_query=("g_BTNH", "q_types_BT"),
    ),
]  # fmt: skip
