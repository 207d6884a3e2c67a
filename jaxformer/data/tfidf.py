"""Vectors of chunks of text that need no model: hashed words, weighted by how rare they are.

Each token and each pair of neighbouring tokens is a word. Words are weighted by tf-idf (Salton and
Buckley 1988) and hashed with signs into few dimensions (Weinberger et al. 2009), which keeps inner
products as they are on average. It stands in for RETRO's frozen BERT where there is none: it finds
what shares words, not what shares meaning.

Shapes: C chunks, m tokens of a chunk, W words of a chunk, D dimensions, F buckets of words.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.order import mix

WIDTH = 512
BUCKETS = 1 << 18
_CHUNKS = 4096  # whose words are counted at one time


def fit(tokens_Cm: np.ndarray) -> np.ndarray:
    """Returns each bucket's weight, log(C / chunks that have it), from the chunks of a database.

    Args:
      tokens_Cm: int32; -1 where a chunk has no token.
    """
    counts_F = np.zeros(BUCKETS, np.int64)
    for start in range(0, len(tokens_Cm), _CHUNKS):
        bucket_CW = np.sort(_words(tokens_Cm[start : start + _CHUNKS]), axis=1)
        first_CW = np.diff(bucket_CW, axis=1, prepend=-1) != 0
        found = bucket_CW[first_CW & (bucket_CW >= 0)]
        counts_F += np.bincount(found, minlength=BUCKETS)
    # A word that no chunk of the database has finds nothing in it.
    weight_F = np.log(max(1, len(tokens_Cm)) / np.maximum(counts_F, 1))
    return np.where(counts_F, weight_F, 0.0).astype(np.float32)


def embed(tokens_Cm: np.ndarray, weight_F: np.ndarray) -> np.ndarray:
    """Returns vectors [C, D] float32 of length 1, or 0 for a chunk without a known word.

    Args:
      tokens_Cm: int32; -1 where a chunk has no token.
      weight_F: from `fit`.
    """
    vectors_CD = np.zeros((len(tokens_Cm), WIDTH), np.float32)
    place_F = mix(np.arange(BUCKETS))
    to_F = (place_F % np.uint64(WIDTH)).astype(np.int64)
    sign_F = 1.0 - 2.0 * (place_F >> np.uint64(63)).astype(np.float64)
    for start in range(0, len(tokens_Cm), _CHUNKS):
        bucket_CW = _words(tokens_Cm[start : start + _CHUNKS])
        there_CW = bucket_CW >= 0
        row_CW = np.broadcast_to(np.arange(len(bucket_CW))[:, None], bucket_CW.shape)
        bucket, row = bucket_CW[there_CW], row_CW[there_CW]
        flat = np.bincount(
            row * WIDTH + to_F[bucket], sign_F[bucket] * weight_F[bucket],
            minlength=len(bucket_CW) * WIDTH,
        )  # fmt: skip
        vectors_CD[start : start + _CHUNKS] = flat.reshape(-1, WIDTH)
    length_C1 = np.linalg.norm(vectors_CD, axis=1, keepdims=True)
    return vectors_CD / np.where(length_C1 > 0, length_C1, 1.0)


def _words(tokens_Cm: np.ndarray) -> np.ndarray:
    """Returns the buckets [C, 2 m - 1] of tokens and of pairs, -1 where there is none."""
    token_Cm = tokens_Cm.astype(np.int64)
    here, after = token_Cm[:, :-1], token_Cm[:, 1:]
    pair_CW = (here + 1) * (1 << 32) + after
    words_CW = np.concatenate([token_Cm, pair_CW], axis=1)
    there_CW = np.concatenate([token_Cm >= 0, (here >= 0) & (after >= 0)], axis=1)
    bucket_CW = (mix(words_CW) % np.uint64(BUCKETS)).astype(np.int64)
    return np.where(there_CW, bucket_CW, -1)
