"""Attention by content and by distance, as in Transformer-XL and XLNet.

A query at position i scores a key at position j by four terms (Dai et al., 2019, section 3.3): the
query with the key, the query with a vector of the distance i - j, a bias with the key, and another
bias with the vector of the distance. XLNet adds whether both are of one segment (Yang et al., 2019,
section 2.5).

Shapes: B batch, T queries, S keys, N heads, H head width, D model width, R distances;
t and s the queries and keys of one block.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.attention.api import attention
from jaxformer.ops.attention.chunked import KEY_CHUNK, QUERY_CHUNK
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Index, pytree
from jaxformer.ops.positions import sinusoidal


def distance_waves(
    first: int, last: int, width: int, *, clamp: int = 0, dtype: Any = jnp.float32
) -> jax.Array:
    """The sinusoids of the distances first, first - 1, ..., last, sines before cosines.

    Args:
      first: the largest distance, query minus key.
      last: the smallest; negative for keys after the query.
      width: D, even.
      clamp: distances beyond this count as this; 0 for none.
      dtype: of the result.

    Returns:
      [R, D], R = first - last + 1 (Dai et al., 2019, appendix B).
    """
    distance_R = jnp.arange(first, last - 1, -1, dtype=jnp.int32)
    if clamp > 0:
        distance_R = jnp.clip(distance_R, -clamp, clamp)
    return sinusoidal(distance_R, width, interleaved=False).astype(dtype)


def relative_shift(x_xtR: jax.Array, num_keys: int) -> jax.Array:
    """Turns columns of distances into columns of keys: out[t, s] = x[t, T - 1 - t + s].

    Column 0 is the largest distance, that of the last query and the first key. It is two copies
    and no gather (Dai et al., 2019, appendix B). Where x has too few columns, which are those of
    keys after the query, the result holds other finite numbers: mask them.

    Args:
      x_xtR: [..., T, R], R at least `num_keys`.
      num_keys: S.

    Returns:
      [..., T, S].

    Raises:
      ValueError: fewer columns than keys.
    """
    *leading, T, R = x_xtR.shape
    S = num_keys
    if R < S:
        raise ValueError(f"relative_shift: {R} distances are fewer than the {S} keys")
    if T == 1:
        return x_xtR[..., :S]
    # In a line, each row begins one column before a whole row after the row above: read in rows of
    # one column less, all begin at the same column.
    columns = R if R >= S + T - 1 else S + 1
    x_xtR = x_xtR[..., :columns]
    if columns > R:
        x_xtR = jnp.pad(x_xtR, [(0, 0)] * (x_xtR.ndim - 1) + [(0, columns - R)])
    flat = x_xtR.reshape(*leading, T * columns)
    rows = flat[..., T - 1 : T - 1 + T * (columns - 1)].reshape(*leading, T, columns - 1)
    return rows[..., :S]


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class RelativeBias:
    """What distances and segments add to the logits; a bias spec, which never becomes an array.

    q is scaled and has its bias already. `r` [R, N, H] holds the distances' vectors, from `first`
    downwards, or [R, D] alike for all heads.
    """

    q_BTNH: jax.Array
    r: jax.Array
    first: int
    offset: int | jax.Array
    same_BTN2: jax.Array | None = None  # the logit of a key in the same segment, and in another
    q_types_BT: jax.Array | None = None
    k_types_BS: jax.Array | None = None

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        t, s = len(q_index_t), len(k_index_s)
        q_BtNH = masks.take(self.q_BTNH, q_index_t, 1)
        begin = self.first - self.offset - (q_index_t[0] + t - 1) + k_index_s[0]
        if isinstance(begin, int):
            r_r = self.r[begin : begin + t + s - 1]
            missing = max(s - r_r.shape[0], 0)
            r_r = jnp.pad(r_r, [(0, missing)] + [(0, 0)] * (r_r.ndim - 1))
            logits_BNts = relative_shift(_dot(q_BtNH, r_r), s)
        elif t == 1:
            # One step of decoding: all keys are there, and only the place of the first one moves.
            logits_BNtr = jnp.pad(_dot(q_BtNH, self.r), [(0, 0)] * 3 + [(0, s)])
            logits_BNts = jax.lax.dynamic_slice_in_dim(logits_BNtr, begin, s, axis=3)
        else:
            index_r = begin + jnp.arange(t + s - 1)
            index_r = jnp.where(index_r < 0, self.r.shape[0], index_r)
            r_r = jnp.take(self.r, index_r, axis=0, mode="fill", fill_value=0)
            logits_BNts = relative_shift(_dot(q_BtNH, r_r), s)
        if self.same_BTN2 is None:
            return logits_BNts
        same_BNt12 = masks.take(self.same_BTN2, q_index_t, 1).swapaxes(1, 2)[:, :, :, None]
        q_types_Bt = masks.take(self.q_types_BT, q_index_t, 1)
        k_types_Bs = masks.take(self.k_types_BS, k_index_s, 1)
        is_same_B1ts = (q_types_Bt[:, :, None] == k_types_Bs[:, None])[:, None]
        return logits_BNts + jnp.where(is_same_B1ts, same_BNt12[..., 0], same_BNt12[..., 1])


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Sum:
    """Two biases, added."""

    left: Any
    right: Any

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return self.left.block(q_index_t, k_index_s) + self.right.block(q_index_t, k_index_s)


def relative_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    waves_RD: jax.Array,
    w_distance_DNH: jax.Array,
    first: int,
    offset: int | jax.Array = 0,
    content_bias_NH: jax.Array,
    distance_bias_NH: jax.Array,
    segment_bias_NH: jax.Array | None = None,
    segment_2NH: jax.Array | None = None,
    q_types_BT: jax.Array | None = None,
    k_types_BS: jax.Array | None = None,
    mask: masks.Mask | None = None,
    bias: Any = None,
    scale: float | None = None,
    **asked: Any,
) -> Any:
    """softmax of content, distance and segment scores (Dai et al., 2019, section 3.3) times values.

    logits = scale ((q + u) k + (q + v) W r + (q + w) s), with u, v, w the three biases of queries.
    XLNet's two streams are two calls, on the same keys.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      waves_RD: what stands for each distance, from `distance_waves`.
      w_distance_DNH: the weights that make a key of it.
      first: the distance of the first row of `waves_RD`.
      offset: the position of query 0 among the keys; an int or an int32 scalar array.
      content_bias_NH: u.
      distance_bias_NH: v.
      segment_bias_NH: w; given with `segment_2NH` and both types.
      segment_2NH: vectors of "the same segment" and "another".
      q_types_BT: the queries' segments.
      k_types_BS: the keys' segments.
      mask: a spec of `masks`. Distances that `waves_RD` lacks must be masked.
      bias: as in `attention`, added to the logits besides.
      scale: multiplies all three terms; 1/sqrt(H) if None.
      **asked: dropout_rate, key, backend, query_chunk, key_chunk, return_weights as in `attention`.

    Returns:
      As `attention`: out_BTNH, or (out_BTNH, weights_BNTS).

    Raises:
      ValueError: shapes that do not fit, as in `attention`.
    """
    (B, T, N, H), S, (R, D) = q_BTNH.shape, k_BSKH.shape[1], waves_RD.shape
    scale, dtype = 1.0 / math.sqrt(H) if scale is None else scale, q_BTNH.dtype
    far_BTNH = (q_BTNH + distance_bias_NH.astype(dtype)) * jnp.asarray(scale, dtype)
    # Either all distances meet the weights, or all queries: in decoding they are far fewer.
    if B * T * D * (H + R) < R * H * (D + B * T):
        far_BTNH = einsum("BTNH,DNH->BTND", far_BTNH, w_distance_DNH)
        r = waves_RD.astype(dtype)
    else:
        # As matrices: XLA's CPU lacks the backward dot of "RD,DNH->RNH" in bf16.
        w_distance_DX = w_distance_DNH.reshape(D, N * H)
        r = einsum("RD,DX->RX", waves_RD.astype(dtype), w_distance_DX).reshape(R, N, H)
    # Blocks of keys and queries are whole in the chunked backend.
    t, s = asked.get("query_chunk") or QUERY_CHUNK, asked.get("key_chunk") or KEY_CHUNK
    T_whole = T if t >= T else -(-T // t) * t
    S_whole = S if s >= S else -(-S // s) * s
    relative = RelativeBias(masks.lengthen(far_BTNH, 1, T_whole), r, first, offset)
    if q_types_BT is not None and k_types_BS is not None:
        assert segment_bias_NH is not None and segment_2NH is not None
        q_segment = (q_BTNH + segment_bias_NH.astype(dtype)) * jnp.asarray(scale, dtype)
        same_BTN2 = einsum("BTNH,ENH->BTNE", q_segment, segment_2NH, out_dtype=jnp.float32)
        relative = dataclasses.replace(
            relative,
            same_BTN2=masks.lengthen(same_BTN2, 1, T_whole),
            # Numbers, for a bias spec's arrays all receive gradients.
            q_types_BT=masks.lengthen(q_types_BT.astype(jnp.float32), 1, T_whole),
            k_types_BS=masks.lengthen(k_types_BS.astype(jnp.float32), 1, S_whole),
        )
    q_BTNH = q_BTNH + content_bias_NH.astype(dtype)
    added = relative
    if bias is not None:
        added = Sum(relative, scores.padded_bias(scores.as_bias(bias), T_whole, S_whole))
    return attention(q_BTNH, k_BSKH, v_BSKH, mask=mask, bias=added, scale=scale, **asked)


def _dot(q_BtNH: jax.Array, r: jax.Array) -> jax.Array:
    """Returns float32 [B, N, t, r] of distances' vectors [r, N, H], or [r, D] for all heads."""
    if r.ndim == 3:
        return einsum("BtNH,rNH->BNtr", q_BtNH, r, out_dtype=jnp.float32)
    # Turned afterwards: XLA's CPU lacks the backward dot of "BtND,rD->BNtr" in bf16.
    return einsum("BtND,rD->BtNr", q_BtNH, r, out_dtype=jnp.float32).swapaxes(1, 2)
