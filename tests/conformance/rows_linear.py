"""Linear cost by an approximation or another kernel: against their formulas, not softmax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks
from jaxformer.ops.attention import linear_attention as of_linear
from jaxformer.ops.attention import performer as of_performer
from jaxformer.ops.attention.linear_attention import linear_attention
from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.nystromformer import nystromformer
from jaxformer.ops.attention.performer import performer
from tests.conformance import references
from tests.conformance.variant import Variant


def without_offset(function: Any) -> Any:
    """A variant whose only place for the queries' position is the causal mask."""

    def call(q, k, v, *, offset, **given):
        return function(q, k, v, **given)

    return call


def projections(rng, case, width=6, **sizes):
    shape = (case.K, max(case.S, 20), width)
    return {
        name: (rng.standard_normal(shape) / width**0.5).astype(np.float32)
        for name in ("keys_NLC", "values_NLC")
    }


def mixed(q, k, v, *, offset, width=6, **given):
    return linformer(q, k, v, **given)


def linformer_reference(xp, q, k, v, case, keys_NLC, values_NLC, width=6):
    of_heads = (xp.repeat(x, case.N // case.K, axis=0) for x in (keys_NLC, values_NLC))
    return references.linformer(xp, q, k, v, case, *of_heads)


def features(rng, case, num_features=16, **sizes):
    return {"features_MH": rng.standard_normal((num_features, case.H)).astype(np.float32)}


def with_features(q, k, v, *, offset, num_features=16, **given):
    return performer(q, k, v, **given)


def constant_decay(rng, case, **sizes):
    return {"log_decay": -rng.uniform(0.02, 0.5, case.N).astype(np.float32)}


def gates(rng, case, **sizes):
    shape = (case.B, case.T, case.N, case.H)
    return {"log_decay": -rng.uniform(0.01, 1.0, shape).astype(np.float32)}


def by_state(call: Any, start: Any, per_token: tuple[str, ...] = ()) -> Any:
    """Decoding with a state instead of a cache: one token in, one out."""

    def decode(q, k, v, own, static):
        @jax.jit
        def step(state, q, k, v, own):
            return call(q, k, v, mask=masks.causal(), offset=0, state=state, return_state=True,
                        **own, **static)  # fmt: skip

        state, outs = start(q, k, own), []
        for t in range(q.shape[1]):
            at = slice(t, t + 1)
            of_token = {n: x[:, at] if n in per_token else x for n, x in own.items()}
            out, state = step(state, q[:, at], k[:, at], v[:, at], of_token)
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    return decode


def performer_state(q, k, own):
    return of_performer.init_state(q.shape[0], k.shape[2], own["features_MH"].shape[0], q.shape[3])


def linear_state(decayed: bool) -> Any:
    def start(q, k, own):
        B, _, N, H = q.shape
        return of_linear.init_state(B, N, k.shape[2], H, decayed=decayed)

    return start


linear = without_offset(linear_attention)
NO_ORDER = {
    "packing": "each summary holds tokens of the whole line",
    "causal": "each summary holds tokens of the whole line",
    "decode": "it is not causal",
}
DECAYED = {
    "bidirectional": "a decay needs an order",
    "cross": "a decay needs an order",
}
RETNET = {"kernel": "identity", "chunk": 8}

ROWS = [
    Variant(
        "Linformer", mixed, linformer_reference, own=projections, static={"width": 6},
        exact=False, causal="never", linear=True, cannot=NO_ORDER, long={"width": 16},
    ),
    Variant(
        "Performer", with_features, references.performer, own=features,
        static={"num_features": 16, "chunk": 8}, exact=False, linear=True,
        long={"num_features": 16, "chunk": 64}, decode=by_state(with_features, performer_state),
    ),
    Variant(
        "linear", linear, references.linear, static={"chunk": 8}, exact=False, linear=True,
        long={"chunk": 64}, decode=by_state(linear, linear_state(False)),
    ),
    Variant(
        "RetNet decay", linear, references.retention, own=constant_decay, static=RETNET,
        exact=False, causal="always", linear=True, cannot=DECAYED, long={**RETNET, "chunk": 64},
        decode=by_state(linear, linear_state(True)),
    ),
    Variant(
        "GLA gates", linear, references.gated_linear, own=gates, static=RETNET,
        per_row=("log_decay",), exact=False, causal="always", linear=True,
        cannot={**DECAYED, "T ≠ S": "each token has a gate, so queries and keys are one line"},
        long={**RETNET, "chunk": 64},
        decode=by_state(linear, linear_state(True), per_token=("log_decay",)),
    ),
    Variant(
        "Nystromformer", without_offset(nystromformer), references.nystrom,
        static={"num_landmarks": 5, "iterations": 6}, exact=False, causal="never", linear=True,
        cannot=NO_ORDER, tolerance=1e-4, bf16=0.05, long={"num_landmarks": 16, "iterations": 6},
    ),
]  # fmt: skip
