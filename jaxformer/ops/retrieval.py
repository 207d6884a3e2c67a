"""The nearest of many keys, and the language model that they make (Khandelwal 2020).

Q queries, S keys of one block, D their width, K neighbours, V vocabulary, C candidates.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxformer.ops.attention.memory import best

# Queries that are compared with a block of keys at one time.
_QUERIES = 512


class Nearest(NamedTuple):
    """The K nearest keys of each query, the nearest first; distance inf where there are fewer.

    distances_QK: squared Euclidean, float32. index_QK: int32; 0 where the distance is inf.
    """

    distances_QK: jax.Array
    index_QK: jax.Array


def none_yet(num_queries: int, neighbours: int) -> Nearest:
    """Returns what `nearer` begins with: no neighbour for any query.

    Args:
      num_queries: Q.
      neighbours: K, from 1 on.

    Raises:
      ValueError: K is below 1.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}: take 1 or more")
    shape = num_queries, neighbours
    return Nearest(jnp.full(shape, jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32))


@jax.jit
def nearer(
    found: Nearest, q_QD: jax.Array, keys_SD: jax.Array, start: jax.Array, count: jax.Array
) -> Nearest:
    """Returns the nearest keys of those found so far and of one more block: exact search.

    A store of any size is searched block by block, and never are all distances held. Products are
    of float32, so that two keys whose distances differ by less than its rounding may change places.

    Args:
      found: of the blocks before; see `none_yet`.
      q_QD: the queries, any floating dtype.
      keys_SD: the block, any floating dtype.
      start: the first key's number in the store; all of them together must be below 2^31.
      count: how many of the S keys are there; the others are padding.

    Returns:
      Nearest, with numbers in the store. Of equally near keys the first ones are kept.
    """
    neighbours, Q, S = found.distances_QK.shape[1], len(q_QD), len(keys_SD)
    S_padded = max(S, neighbours)
    k_SD = jnp.pad(keys_SD.astype(jnp.float32), ((0, S_padded - S), (0, 0)))
    norm_S = jnp.sum(k_SD * k_SD, axis=1)
    norm_S = jnp.where(jnp.arange(S_padded) < count, norm_S, jnp.inf)

    def of_chunk(each: tuple[Nearest, jax.Array]) -> Nearest:
        old, q_qD = each
        q_qD = q_qD.astype(jnp.float32)
        product_qS = lax.dot_general(
            q_qD, k_SD, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        # The distance without |q|^2, negated: greater is nearer.
        near_qK, index_qK = best(2.0 * product_qS - norm_S, neighbours)
        # Rounding may make the distance to an equal key negative.
        distance_qK = jnp.maximum(jnp.sum(q_qD * q_qD, axis=1, keepdims=True) - near_qK, 0.0)
        near_qC = -jnp.concatenate([old.distances_QK, distance_qK], axis=1)
        index_qC = jnp.concatenate([old.index_QK, index_qK + start], axis=1)
        near_qK, place_qK = lax.top_k(near_qC, neighbours)
        index_qK = jnp.take_along_axis(index_qC, place_qK, axis=1)
        return Nearest(-near_qK, jnp.where(near_qK == -jnp.inf, 0, index_qK))

    q = min(_QUERIES, Q)
    chunks = -(-Q // q)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, chunks * q - Q), (0, 0))).reshape(chunks, q, x.shape[1])

    chosen = lax.map(of_chunk, (Nearest(*map(cut, found)), cut(q_QD)))
    return Nearest(*(x.reshape(chunks * q, neighbours)[:Q] for x in chosen))


def knn_log_probs(
    distances_QK: jax.Array, values_QK: jax.Array, vocab_size: int, *, temperature: float = 1.0
) -> jax.Array:
    """Returns the log-probabilities of the next token that neighbours tell (eq. 2).

    p(v) is proportional to the sum of exp(-d / temperature) over the neighbours whose value is v.

    Args:
      distances_QK: how far each neighbour is; inf: there is none.
      values_QK: the token that follows each neighbour, int32.
      vocab_size: V.
      temperature: the larger, the more the far neighbours count.

    Returns:
      [Q, V] float32; -inf for a token that no neighbour has.

    Raises:
      ValueError: a temperature that is not above 0.
    """
    weight_QK = jax.nn.softmax(_scores(distances_QK, temperature), axis=1)
    rows_Q1 = jnp.arange(len(values_QK))[:, None]
    zeros_QV = jnp.zeros((len(values_QK), vocab_size), jnp.float32)
    return jnp.log(zeros_QV.at[rows_Q1, values_QK].add(weight_QK))


@functools.partial(jax.jit, static_argnames="temperature")
def knn_log_prob_of(
    distances_QK: jax.Array, values_QK: jax.Array, target_Q: jax.Array, *, temperature: float = 1.0
) -> jax.Array:
    """Returns `knn_log_probs` of one token each, [Q] float32, without the rest of the vocabulary.

    Args:
      distances_QK, values_QK, temperature: see `knn_log_probs`.
      target_Q: the tokens, int32.

    Raises:
      ValueError: a temperature that is not above 0.
    """
    score_QK = _scores(distances_QK, temperature)
    hit_QK = jnp.where(values_QK == target_Q[:, None], score_QK, -jnp.inf)
    return jax.nn.logsumexp(hit_QK, axis=1) - jax.nn.logsumexp(score_QK, axis=1)


def _scores(distances_QK: jax.Array, temperature: float) -> jax.Array:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: take a number above 0")
    return -distances_QK.astype(jnp.float32) / temperature


def interpolate(lm_log_probs: jax.Array, knn_log_probs: jax.Array, weight: float) -> jax.Array:
    """Returns log(weight · p_knn + (1 - weight) · p_lm): probabilities are mixed (eq. 3).

    Args:
      lm_log_probs: of the language model, any shape.
      knn_log_probs: of the neighbours, alike; -inf is a probability of 0.
      weight: lambda, 0 (the language model exactly) to 1 (the neighbours alone).

    Raises:
      ValueError: a weight outside 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: take a number from 0 to 1")
    knn, lm = (jnp.asarray(x, jnp.float32) for x in (knn_log_probs, lm_log_probs))
    if weight in (0, 1):
        return knn if weight else lm
    return jnp.logaddexp(knn + jnp.log(weight), lm + jnp.log1p(-weight))
