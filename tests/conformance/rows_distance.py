"""Attention by distance: Transformer-XL's and XLNet's relative attention."""

from __future__ import annotations

import numpy as np

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


ROWS = [Variant("Transformer-XL relative", relative, references.relative, own=of_distances)]
