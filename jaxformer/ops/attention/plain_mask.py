"""What the linear ways to attend can make of a mask: an order, and an id for each query and key.

A linear variant never sees a pair of a query and a key. What it can honour is "the keys up to me"
(a prefix sum), "these keys are hidden" (they add nothing) and "only keys of my own segment" (a sum
that begins anew). Anything else is told as a mistake.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, L the merged line of both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.indices import in_place
from jaxformer.ops.masks import Mask


class PlainMask(NamedTuple):
    """A query sees a key of its own id, if that is not 0; and none after it, if causal.

    Attributes:
      causal: whether a query sees only keys s <= t + offset.
      offset: the position of query 0 among the keys.
      q_ids_BT: int32 [B|1, T].
      k_ids_BS: int32 [B|1, S].
      packed: whether there may be other ids than 0 and 1.
      in_place: whether there are as many queries as keys, and query t stands at key t.
      aligned: whether they also surely have the same segments, so that one line holds both.
    """

    causal: bool
    offset: int | jax.Array
    q_ids_BT: jax.Array
    k_ids_BS: jax.Array
    packed: bool
    in_place: bool
    aligned: bool

    def pairs(self) -> jax.Array:
        """Returns bool [B|1, T, S]: which pairs see each other; for weights that are asked for."""
        seen_BTS = self.q_ids_BT[:, :, None] == self.k_ids_BS[:, None]
        seen_BTS &= (self.k_ids_BS != 0)[:, None]
        if not self.causal:
            return seen_BTS
        row_T1 = jnp.arange(self.q_ids_BT.shape[1])[:, None] + self.offset
        return seen_BTS & (jnp.arange(self.k_ids_BS.shape[1]) <= row_T1)


def plain_mask(mask: Mask | None, name: str, num_queries: int, num_keys: int) -> PlainMask:
    """Reads a mask for a variant that holds no weights of single pairs.

    Args:
      mask: a spec of `masks`: parts joined by `&` out of `causal`, `lengths`, one `segments`, and
        `explicit` of shape [B|1, 1, 1, S] (hidden keys) or [B|1, 1, T, 1] (hidden queries).
      name: the variant's, for messages.
      num_queries: T.
      num_keys: S.

    Raises:
      ValueError: a part that is none of these.
    """
    offsets: list[int | jax.Array] = []
    pairs: list[masks.Segments] = []
    q_seen_BT = jnp.ones((1, num_queries), jnp.bool_)
    k_seen_BS = jnp.ones((1, num_keys), jnp.bool_)
    for part in masks.parts(mask):
        if isinstance(part, masks.Causal):
            offsets.append(part.offset)
        elif isinstance(part, masks.Lengths):
            k_seen_BS &= jnp.arange(num_keys) < part.kv_lengths_B[:, None]
        elif isinstance(part, masks.Segments):
            pairs.append(part)
        elif isinstance(part, masks.Explicit) and part.mask.shape[1:3] == (1, 1):
            k_seen_BS &= part.mask[:, 0, 0]
        elif isinstance(part, masks.Explicit) and part.mask.shape[1::2] == (1, 1):
            q_seen_BT &= part.mask[:, 0, :, 0]
        else:
            raise ValueError(f"{name}: cannot honour {_told(part)}; valid are {_VALID}")
    if len(pairs) > 1:
        raise ValueError(f"{name}: cannot honour two masks of segments; give one with both")
    q_ids_BT, k_ids_BS, twins = q_seen_BT.astype(jnp.int32), k_seen_BS.astype(jnp.int32), True
    if pairs:
        q_ids_BT *= pairs[0].q_segment_ids_BT
        k_ids_BS *= pairs[0].kv_segment_ids_BS
        twins = pairs[0].others_BS is None
    offset = _least(offsets) if offsets else 0
    whole = in_place(num_queries, num_keys, offset)
    return PlainMask(bool(offsets), offset, q_ids_BT, k_ids_BS, bool(pairs), whole, whole and twins)


def without_order(plain: PlainMask, name: str, *, why: str, packing: bool = False) -> PlainMask:
    """Returns the mask; raises ValueError where it is causal, or packed and that is impossible."""
    if plain.causal:
        raise ValueError(f"{name}: cannot be causal: {why}; valid are masks of padding")
    if plain.packed and not packing:
        raise ValueError(
            f"{name}: cannot keep packed segments apart: {why}; hide padding with masks.lengths"
        )
    return plain


class OneLine(NamedTuple):
    """Queries and keys sorted into one line of L places, where packed segments are runs.

    Attributes:
      position_BL: the position of each place's token among the keys.
      q_ids_BL: 0 where a place holds a key.
      k_ids_BL: 0 where a place holds a query.
    """

    position_BL: jax.Array
    q_ids_BL: jax.Array
    k_ids_BL: jax.Array
    q_from_BL: jax.Array
    k_from_BL: jax.Array
    q_to_BT: jax.Array

    def queries(self, x: jax.Array) -> jax.Array:
        """Returns [B, L, ...] of [B, T, ...]; what is not a query is arbitrary."""
        return _gather(x, self.q_from_BL)

    def keys(self, x: jax.Array) -> jax.Array:
        """Returns [B, L, ...] of [B, S, ...]; what is not a key is arbitrary."""
        return _gather(x, self.k_from_BL)

    def back(self, x: jax.Array) -> jax.Array:
        """Returns the queries' places [B, T, ...] of [B, L, ...]."""
        return _gather(x, self.q_to_BT)


def one_line(plain: PlainMask) -> OneLine:
    """Sorts queries and keys by segment and, if causal, by position, a key before its query.

    So that a scan along one line serves cross attention, T != S, a cache's offset, and segments
    that lie scattered: at the price of T + S places and the gathers.
    """
    q_ids_BT, k_ids_BS = plain.q_ids_BT, plain.k_ids_BS
    B = max(q_ids_BT.shape[0], k_ids_BS.shape[0])
    T, S = q_ids_BT.shape[1], k_ids_BS.shape[1]
    L = T + S
    ids_BL = jnp.concatenate(
        [jnp.broadcast_to(k_ids_BS, (B, S)), jnp.broadcast_to(q_ids_BT, (B, T))], axis=1
    )
    position_L = jnp.concatenate([jnp.arange(S), jnp.arange(T) + plain.offset])
    place_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    # Stable: at equal positions a key, which stands first, stays before its query.
    order = jnp.broadcast_to(position_L if plain.causal else 0, (B, L)).astype(jnp.int32)
    _, _, from_BL = jax.lax.sort((ids_BL, order, place_BL), num_keys=2, is_stable=True)
    _, to_BL = jax.lax.sort((from_BL, place_BL), num_keys=1)
    ids_BL = jnp.take_along_axis(ids_BL, from_BL, axis=1)
    is_key_BL = from_BL < S
    return OneLine(
        position_L[from_BL],
        jnp.where(is_key_BL, 0, ids_BL),
        jnp.where(is_key_BL, ids_BL, 0),
        jnp.clip(from_BL - S, 0),
        jnp.minimum(from_BL, S - 1),
        to_BL[:, S:],
    )


_VALID = (
    "masks.causal, masks.lengths, masks.segments, and masks.explicit of shape [B, 1, 1, S] or "
    "[B, 1, T, 1], joined by &"
)


def _told(part: Any) -> str:
    if isinstance(part, masks.Explicit):
        return f"an explicit mask of shape {part.mask.shape}"
    return f"a mask of the kind {type(part).__name__.lower()}"


def _least(offsets: list[int | jax.Array]) -> int | jax.Array:
    if all(isinstance(offset, int) for offset in offsets):
        return min(offsets)  # type: ignore[type-var]
    least = offsets[0]
    for offset in offsets[1:]:
        least = jnp.minimum(least, offset)
    return least


def _gather(x: jax.Array, from_BL: jax.Array) -> jax.Array:
    if from_BL.shape[0] == 1:
        return jnp.take(x, from_BL[0], axis=1)
    return jax.vmap(lambda x, place: jnp.take(x, place, axis=0))(x, from_BL)
