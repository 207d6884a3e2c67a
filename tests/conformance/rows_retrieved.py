"""Attention to what was found elsewhere: the best of a large memory, and neighbours of chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.attention.chunked_cross import chunked_cross_attention
from jaxformer.ops.attention.memory import memory_attention
from tests.conformance import references
from tests.conformance.variant import Variant


def best(q, k, v, *, offset, **given):
    return memory_attention(q, k, v, **given)


def neighbours(rng, case, chunk, **sizes):
    """q, and keys and values [B, L, S, K, H] of every chunk that there may be."""
    chunks = max((case.offset + case.T) // chunk, 1)
    shape = (case.B, chunks, case.S, case.K, case.H)
    q = rng.standard_normal((case.B, case.T, case.N, case.H))
    return [x.astype(np.float32) for x in (q, *(rng.standard_normal(shape) for _ in range(2)))]


def by_offset(q, k, v, own, static):
    """Each token alone, at its place in the text, with all neighbours in the cache."""

    @jax.jit
    def step(q, k, v, t):
        return chunked_cross_attention(q, k, v, offset=t, **static)

    outs = [step(q[:, t : t + 1], k, v, jnp.int32(t)) for t in range(q.shape[1])]
    return jnp.concatenate(outs, axis=1)


PLACELESS = "what is retrieved has no place in the text; it is causal as it is"

ROWS = [
    Variant(
        "memorizing top-k", best, references.memory, static={"top_k": 4}, sizes={"top_k": (1, 30)},
    ),
    Variant(
        "RETRO cross-attention", chunked_cross_attention, references.chunked_cross,
        inputs=neighbours, static={"chunk": 6}, sizes={"chunk": (1, 9)}, keys=7, linear=True,
        causal="built in", long={"chunk": 64}, cannot={"causal": PLACELESS}, decode=by_offset,
    ),
]  # fmt: skip
