"""Exact search among vectors, by comparing all, a block at a time.

Shapes: C queries, P keys, D width of a vector, K neighbours, Q queries and S keys of one block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.attention.memory import best

QUERIES, KEYS = 512, 65536  # that are compared at one time


def nearest(
    queries_CD: np.ndarray,
    keys_PD: np.ndarray,
    neighbours: int,
    low_C: np.ndarray | None = None,
    high_C: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the keys with the greatest inner products, by comparing all: [C, K] int32.

    Args:
      queries_CD, keys_PD: float32.
      neighbours: K.
      low_C, high_C: a query does not find keys low <= p < high.

    Returns:
      The best first, of equals the first; -1 where there are fewer.
    """
    C, P, K = len(queries_CD), len(keys_PD), neighbours
    none_C = np.zeros(C, np.int32)
    bounds_C2 = np.stack(
        [none_C if low_C is None else low_C, none_C if high_C is None else high_C], axis=1
    ).astype(np.int32)
    found_CK = np.full((C, K), -1, np.int32)
    size = max(K, min(KEYS, P))
    for q in range(0, C, QUERIES):
        query, bounds = (
            np.pad(x[q : q + QUERIES], ((0, max(0, q + QUERIES - C)), (0, 0)))
            for x in (queries_CD, bounds_C2)
        )
        held = jnp.full((QUERIES, K), -jnp.inf), jnp.full((QUERIES, K), -1, jnp.int32)
        for p in range(0, P, size):
            block = np.pad(keys_PD[p : p + size], ((0, max(0, p + size - P)), (0, 0)))
            held = _better(*held, query, bounds, block, p, P)
        found_CK[q : q + QUERIES] = np.asarray(held[1])[: C - q]
    return found_CK


@jax.jit
def _better(score_QK, found_QK, query_QD, bounds_Q2, block_SD, start, total):
    """Returns the best of those held and of one more block of keys."""
    index_S = start + jnp.arange(len(block_SD))
    score_QS = jax.lax.dot_general(
        query_QD, block_SD, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    own_QS = (index_S >= bounds_Q2[:, :1]) & (index_S < bounds_Q2[:, 1:])
    score_QS = jnp.where(own_QS | (index_S >= total), -jnp.inf, score_QS)
    new_QK, place_QK = best(score_QS, score_QK.shape[1])
    score_Q2K = jnp.concatenate([score_QK, new_QK], axis=1)
    index_Q2K = jnp.concatenate([found_QK, start + place_QK], axis=1)
    score_QK, of_QK = jax.lax.top_k(score_Q2K, score_QK.shape[1])
    found_QK = jnp.take_along_axis(index_Q2K, of_QK, axis=1)
    return score_QK, jnp.where(score_QK == -jnp.inf, -1, found_QK)
