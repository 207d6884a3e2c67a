"""Exact attention to a window, a few global tokens, and blocks at random."""

from __future__ import annotations

import numpy as np

from jaxformer.ops.attention.bigbird import bigbird
from jaxformer.ops.attention.longformer import longformer
from tests.conformance import references
from tests.conformance.variant import Variant


def global_tokens(rng, case, **sizes):
    """Some global tokens in each row, with projections of their own."""
    is_global_BS = np.zeros((case.B, case.S), bool)
    for b in range(case.B):
        is_global_BS[b, [min(place, case.S - 1) for place in (0, 5, 9 + b % 2)][b % 2 :]] = True
    shapes = ((case.T, case.N), (case.S, case.K), (case.S, case.K))
    names = ("global_q_BTNH", "global_k_BSKH", "global_v_BSKH")
    return {"is_global_BS": is_global_BS} | {
        name: rng.standard_normal((case.B, *shape, case.H)).astype(np.float32)
        for name, shape in zip(names, shapes, strict=True)
    }


def random_blocks(rng, case, block, **sizes):
    """One block of each head and inner block, which may be in sight already, and sometimes none."""
    blocks = -(-case.S // block)
    inner = max(blocks - (1 if case.causal else 2), 0)
    shape = (case.N, inner, 2)
    return {"random_NIR": rng.integers(-1, blocks, shape).astype(np.int32)}


ROWS = [
    Variant(
        "Longformer", longformer, references.longformer, own=global_tokens, linear=True,
        static={"window": 4, "max_global": 3}, long={"window": 64, "max_global": 16},
        per_row=("is_global_BS", "global_q_BTNH", "global_k_BSKH", "global_v_BSKH"),
        per_query=("global_q_BTNH",),
    ),
    Variant(
        "BigBird", bigbird, references.bigbird, own=random_blocks, static={"block": 3},
        sizes={"block": (1, 9)}, long={"block": 64}, linear=True,
    ),
]  # fmt: skip
