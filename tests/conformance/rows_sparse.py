"""Exact attention to a part of the keys: windows and blocks."""

from __future__ import annotations

import numpy as np

from jaxformer.ops.attention.block_local import block_local
from jaxformer.ops.attention.sliding_window import sliding_window
from tests.conformance import references
from tests.conformance.variant import Variant


def sink_logits(rng, case, **sizes):
    return {"sink_logits_N": rng.standard_normal(case.N).astype(np.float32)}


ROWS = [
    Variant(
        "sliding window", sliding_window, references.window, linear=True,
        static={"left": 4, "right": 2, "query_chunk": 8}, long={"left": 64, "right": 64},
        sizes={"left": (0, 30), "right": (0, 30), "query_chunk": (1, 9)},
    ),
    Variant(
        "dilated window", sliding_window, references.window, linear=True,
        static={"left": 2, "right": 2, "dilation": 3},
        long={"left": 32, "right": 32, "dilation": 2},
        sizes={"left": (0, 6), "right": (0, 6), "dilation": (1, 4)},
    ),
    Variant(
        "window and sinks", sliding_window, references.window, linear=True,
        static={"left": 4, "right": 1, "sinks": 2}, long={"left": 64, "right": 64, "sinks": 4},
        sizes={"left": (0, 9), "right": (0, 9), "sinks": (0, 9)},
    ),
    Variant(
        "window, sink logits", sliding_window, references.sink_logits, own=sink_logits,
        static={"left": 4}, long={"left": 64}, sizes={"left": (0, 9)}, linear=True,
    ),
    Variant(
        "window, soft-cap", sliding_window, references.window, linear=True,
        static={"left": 4, "right": 2, "soft_cap": 2.0},
        long={"left": 64, "right": 64, "soft_cap": 2.0},
    ),
    Variant(
        "block-local", block_local, references.blocks, static={"block": 6, "look_back": 1},
        sizes={"block": (1, 9), "look_back": (0, 3)}, long={"block": 64, "look_back": 1},
        linear=True,
    ),
]  # fmt: skip
