"""Positions to add to embeddings (sinusoidal, learned) and to logits (ALiBi, T5); see rope.py too.

Shapes: B batch, T queries, S keys, N heads, D model width, P positions, U buckets;
t and s the queries and keys of one block.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxformer.ops.indices import Index, are_consecutive, as_array
from jaxformer.ops.masks import pytree


def sinusoidal(
    positions_BT: jax.Array, width: int, *, interleaved: bool = True, base: float = 10_000.0
) -> jax.Array:
    """Sines and cosines at geometric frequencies (Vaswani et al., 2017, section 3.5).

    Args:
      positions_BT: integer positions, any shape.
      width: D, even.
      interleaved: sin, cos, sin, cos... as in the paper; False puts all sines first, then all
        cosines, as Marian and FSMT do.
      base: the largest wavelength over 2 pi.

    Returns:
      float32 [B, T, D].

    Raises:
      ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"sinusoidal: the width must be even, not {width}")
    frequencies = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    if interleaved:
        pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return pairs.reshape(*positions_BT.shape, width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def learned(positions_BT: jax.Array, table_PD: jax.Array) -> jax.Array:
    """Looks positions up in a learned table of P rows; one beyond the table gives NaN.

    Args:
      positions_BT: integer positions (with the family's offset added: RoBERTa and BART +2).
      table_PD: one row a position.

    Returns:
      [B, T, D] in the table's dtype.
    """
    positions_BT = jnp.where(positions_BT < 0, table_PD.shape[0], positions_BT)
    return jnp.take(table_PD, positions_BT, axis=0, mode="fill", fill_value=jnp.nan)


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Alibi:
    """A bias that falls linearly with the distance; see `alibi`."""

    slopes: tuple[float, ...]
    offset: int | jax.Array = 0

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        distance_ts = jnp.abs(_relative(q_index_t, k_index_s, self.offset))
        slopes_N11 = jnp.asarray(self.slopes, jnp.float32)[:, None, None]
        return (-slopes_N11 * distance_ts.astype(jnp.float32))[None]


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class T5RelativeBias:
    """A learned bias per head and bucket of distances; see `t5_relative_bias`."""

    table_UN: jax.Array
    bidirectional: bool
    max_distance: int
    offset: int | jax.Array = 0

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        U, max_distance = self.table_UN.shape[0], self.max_distance
        if not (are_consecutive(q_index_t) and are_consecutive(k_index_s)):
            far_ts = _relative(q_index_t, k_index_s, self.offset)
            bucket_ts = t5_bucket(
                far_ts, U, bidirectional=self.bidirectional, max_distance=max_distance
            )
            return jnp.moveaxis(self.table_UN[bucket_ts].astype(jnp.float32), 2, 0)[None]
        # The block of consecutive places is constant along its diagonals: look up one value a
        # diagonal, and lay them out with row i starting at diagonal t - 1 - i. Both this and its
        # gradient are plain copies and sums, where table[bucket_ts] would scatter.
        t, s = len(q_index_t), len(k_index_s)
        nearest = as_array(k_index_s)[0] - as_array(q_index_t)[-1] - self.offset
        bucket_r = t5_bucket(
            nearest + jnp.arange(t + s - 1), U,
            bidirectional=self.bidirectional, max_distance=max_distance,
        )  # fmt: skip
        bias_Nr = self.table_UN[bucket_r].T.astype(jnp.float32)
        if t == 1:
            return bias_Nr[None, :, None]
        flat = jnp.tile(bias_Nr, (1, t))[:, t - 1 : -1]
        return flat.reshape(-1, t, t + s - 2)[None, :, :, :s]


def alibi(num_heads: int, *, offset: int | jax.Array = 0) -> Alibi:
    """Bias -slope * |distance|, slopes geometric over the heads (Press et al., 2022, section 3).

    Args:
      num_heads: N; for N not a power of two the slopes follow the authors' code.
      offset: the position of query 0 among the keys (a cache index); an int or int32 scalar array.

    Returns:
      A bias spec for `attention(bias=...)`.
    """
    closest = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / closest) for i in range(closest)]
    # The rest are every other slope of twice as many heads.
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / closest) for i in range(num_heads - closest)]
    return Alibi(tuple(slopes), offset)


def t5_relative_bias(
    table_UN: jax.Array,
    *,
    bidirectional: bool = True,
    max_distance: int = 128,
    offset: int | jax.Array = 0,
) -> T5RelativeBias:
    """A learned bias per head and bucket of distances (Raffel et al., 2020, section 2.1).

    Args:
      table_UN: the bias of U buckets and N heads.
      bidirectional: half the buckets are for keys after the query (encoders); False for decoders.
      max_distance: beyond it all distances share the last bucket.
      offset: the position of query 0 among the keys (a cache index); an int or int32 scalar array.

    Returns:
      A bias spec for `attention(bias=...)`; its table receives gradients.
    """
    return T5RelativeBias(table_UN, bidirectional, max_distance, offset)


def t5_bucket(
    relative: jax.Array, num_buckets: int, *, bidirectional: bool, max_distance: int
) -> jax.Array:
    """The bucket of each signed distance (key - query): exact when near, logarithmic when far.

    Args:
      relative: int32, any shape.
      num_buckets: U.
      bidirectional: see `t5_relative_bias`.
      max_distance: see `t5_relative_bias`.

    Returns:
      int32 in [0, U), the shape of `relative`.
    """
    if bidirectional:
        num_buckets //= 2
        start = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        start = 0
        distance = jnp.maximum(-relative, 0)
    exact = num_buckets // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    log_scale = (num_buckets - exact) / math.log(max_distance / exact)
    far = exact + (jnp.log(ratio) * log_scale).astype(jnp.int32)
    far = jnp.minimum(far, num_buckets - 1)
    return start + jnp.where(distance < exact, distance, far)


def _relative(q_index_t: Index, k_index_s: Index, offset: int | jax.Array) -> jax.Array:
    return as_array(k_index_s)[None, :] - (as_array(q_index_t)[:, None] + offset)
