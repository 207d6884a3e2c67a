"""Attention over the few best entries of a large memory (Wu et al., 2022, section 3).

"Memorizing Transformers": each query searches keys of long ago, attends to the k best of them, and
a gate for each head mixes what it found there with what it found nearby. Nothing learns through the
memory: keys and values in it are constants.

Shapes: B batch, T queries, M memory entries, N heads, K key/value heads, G = N/K, H head width,
k retrieved entries, t queries of one block, R = T * N.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import scores
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Index, Mask

# Scores that exist at one time (64 MiB in float32), and retrieved numbers of keys or values.
SCORES = 2**24
RETRIEVED = 2**22
# A row longer than this is searched by groups of so many.
DIRECT, GROUP = 1024, 16


def memory_attention(
    q_BTNH: jax.Array,
    k_BMKH: jax.Array,
    v_BMKH: jax.Array,
    *,
    top_k: int = 32,
    mask: Mask | None = None,
    bias: None = None,
    scale: float | None = None,
    approximate: bool = False,
    return_weights: bool = False,
) -> Any:
    """softmax(scale q k^T) v over each query's top_k best entries (Wu et al., 2022, section 3.1).

    With top_k >= M it is `ops.attention` whose keys and values are constants. Gradients reach the
    queries only. Time is that of the scores' matmul and little more; memory is O(T top_k), for
    scores exist a block at a time and retrieved keys are fetched again in the backward pass.

    Args:
      q_BTNH: queries.
      k_BMKH: the memory's keys; K divides N.
      v_BMKH: the memory's values.
      top_k: entries that a query attends to; more than M count as M.
      mask: a spec of `masks` that says which entries a query may find: `lengths` of a memory that
        is not full, `segments` of documents, `span` of places; or None: all.
      bias: None; the memory is searched by inner products alone.
      scale: multiplies q k^T; 1/sqrt(H) if None.
      approximate: see `search`.
      return_weights: also return the weights, which costs O(T M) memory.

    Returns:
      out_BTNH in the dtype of the queries, exactly 0 where a query finds nothing; or (out_BTNH,
      weights_BNTM), float32, at most top_k of a row above 0.

    Raises:
      ValueError: shapes that do not fit, top_k below 1, or a bias.
    """
    if bias is not None:
        raise ValueError("memory_attention: entries are found by q k^T alone; bias must be None")
    if k_BMKH.shape != v_BMKH.shape:
        raise ValueError(
            f"memory_attention: keys {k_BMKH.shape} and values {v_BMKH.shape} must have one shape"
        )
    scale = 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    k_BMKH, v_BMKH = (jax.lax.stop_gradient(x).astype(q_BTNH.dtype) for x in (k_BMKH, v_BMKH))
    found_BTNk, index_BTNk = search(
        q_BTNH, k_BMKH, top_k=top_k, mask=mask, scale=scale, approximate=approximate
    )
    (B, T, N, H), (M, K), k = q_BTNH.shape, k_BMKH.shape[1:3], index_BTNk.shape[-1]
    if M == 0:
        out_BTNH = jnp.zeros_like(q_BTNH)
        return (out_BTNH, jnp.zeros((B, N, T, 0), jnp.float32)) if return_weights else out_BTNH
    # Entry (m, head) is row m * K + head of a memory without axes of its own for the two.
    row_BTNk = index_BTNk * K + (jnp.arange(N) // (N // K))[:, None]
    flat = (x.reshape(B, M * K, H) for x in (k_BMKH, v_BMKH))
    per_query = (x.reshape(B, T * N, -1) for x in (q_BTNH, row_BTNk, found_BTNk > -jnp.inf))
    out_BRH, p_BRk = jax.vmap(functools.partial(_attend, scale=scale, batch=B))(*per_query, *flat)
    out_BTNH = out_BRH.reshape(q_BTNH.shape)
    if not return_weights:
        return out_BTNH
    b, t, n = (x[..., None] for x in jnp.ogrid[:B, :T, :N])
    weights_BNTM = jnp.zeros((B, N, T, M), jnp.float32)
    return out_BTNH, weights_BNTM.at[b, n, t, index_BTNk].add(p_BRk.reshape(B, T, N, k))


def gated(local_BTNH: jax.Array, memory_BTNH: jax.Array, gate_N: jax.Array) -> jax.Array:
    """g memory + (1 - g) local, g = sigmoid(gate) of each head (Wu et al., 2022, section 3.1).

    Args:
      local_BTNH: what attention to the near found.
      memory_BTNH: what `memory_attention` found.
      gate_N: one number for each head; float32.

    Returns:
      out_BTNH in the dtype of `local_BTNH`.

    Raises:
      ValueError: shapes that do not fit.
    """
    if local_BTNH.shape != memory_BTNH.shape or gate_N.shape != local_BTNH.shape[2:3]:
        raise ValueError(
            f"gated: local {local_BTNH.shape}, memory {memory_BTNH.shape} and gate {gate_N.shape} "
            "must be [B, T, N, H] twice and [N]"
        )
    g_N1 = jax.nn.sigmoid(gate_N.astype(jnp.float32))[:, None]
    mixed = g_N1 * memory_BTNH.astype(jnp.float32) + (1 - g_N1) * local_BTNH.astype(jnp.float32)
    return mixed.astype(local_BTNH.dtype)


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Span(Mask):
    first_BT: jax.Array
    stop_BT: jax.Array
    place_BS: jax.Array

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        first_Bt1, stop_Bt1 = (
            masks.take(x, q_index_t, 1)[..., None] for x in (self.first_BT, self.stop_BT)
        )
        place_B1s = masks.take(self.place_BS, k_index_s, 1)[:, None]
        return ((place_B1s >= first_Bt1) & (place_B1s < stop_Bt1))[:, None]

    def padded(self, num_queries: int, num_keys: int) -> Mask:
        first_BT, stop_BT = (
            masks.lengthen(x, 1, num_queries) for x in (self.first_BT, self.stop_BT)
        )
        # What is new, a 0, stands at -1.
        return Span(first_BT, stop_BT, masks.lengthen(self.place_BS + 1, 1, num_keys) - 1)


def span(first_BT: jax.Array, stop_BT: jax.Array, place_BS: jax.Array) -> Mask:
    """A query may see the keys at the places from its first up to its stop: earlier segments, say.

    Args:
      first_BT: int32, 0 or more.
      stop_BT: int32, the place after the last; at most `first_BT` for a query that sees none.
      place_BS: int32 place of each key, such as the number of its segment; -1: nobody sees it.
    """
    return Span(jnp.asarray(first_BT), jnp.asarray(stop_BT), jnp.asarray(place_BS))


def search(
    q_BTNH: jax.Array,
    k_BMKH: jax.Array,
    *,
    top_k: int = 32,
    mask: Mask | None = None,
    scale: float | None = None,
    approximate: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns each query's best entries by scale q k^T, best first; of equals the first in memory.

    Args:
      q_BTNH, k_BMKH, mask, scale: see `memory_attention`.
      top_k: how many.
      approximate: find them by `jax.lax.approx_max_k`, which is fast on a TPU and finds 95 % of
        them there (Chern et al., 2022); other machines do the exact search for it, by sorting,
        which takes longer than `approximate=False`.

    Returns:
      (scores_BTNk float32, -inf where a query may see fewer than k entries, index_BTNk int32), with
      k = min(top_k, M). Neither has a gradient.

    Raises:
      ValueError: shapes that do not fit, or top_k below 1.
    """
    (B, T, N, H), (_, M, K, _) = _shapes(q_BTNH, k_BMKH, top_k, mask)
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    k, G = min(top_k, M), N // K
    if k == 0 or T == 0 or B == 0:
        nothing = jnp.zeros((B, T, N, k))
        return nothing, nothing.astype(jnp.int32)
    grouped = not approximate and M > DIRECT
    S = -(-M // GROUP) * GROUP if grouped else M  # whole groups, or the scores would be copied
    # Heads one by one where that leaves a block of many queries: the fewer, the slower the matmul.
    together = K if B * N * S * min(T, 256) <= SCORES else 1
    t = min(T, max(1, SCORES // (B * G * together * S)))
    blocks = -(-T // t)
    q_BTNH, k_BMKH = jax.lax.stop_gradient((q_BTNH, k_BMKH))
    q_BTNH = masks.lengthen(q_BTNH, 1, blocks * t)
    mask = None if mask is None else mask.padded(blocks * t, S)
    q_nKBtGH = q_BTNH.reshape(B, blocks, t, K, G, H).transpose(1, 3, 0, 2, 4, 5)
    k_KBSH = masks.lengthen(k_BMKH, 1, S).astype(q_BTNH.dtype).transpose(2, 0, 1, 3)

    def of_head(q_BtGH, k_BSH, mask_BGts):
        q_BsH = q_BtGH.reshape(B, t * G, H)
        raw_BtGS = einsum("BtH,BSH->BtS", q_BsH, k_BSH, out_dtype=jnp.float32)
        raw_BtGS = scale * raw_BtGS.reshape(B, t, G, S)
        if mask_BGts is not None:
            raw_BtGS = jnp.where(jnp.moveaxis(mask_BGts, 1, 2), raw_BtGS, -jnp.inf)
        if S > M:
            raw_BtGS = jnp.where(jnp.arange(S) < M, raw_BtGS, -jnp.inf)
        if approximate:
            return jax.lax.approx_max_k(raw_BtGS, k)
        return best(raw_BtGS, k)

    def of_block(each):
        q_KBtGH, start = each
        if mask is None:
            of_all, of_each = None, None
        else:
            mask_BNts = mask.block(masks.Run(start, t), range(S))
            of_each = jnp.moveaxis(scores.split_heads(mask_BNts, K), 1, 0)
            # A mask that heads share is not copied for each of them.
            of_all, of_each = (of_each[0], None) if of_each.shape[0] == 1 else (None, of_each)

        def one(each):
            q_BtGH, k_BSH, mask_BGts = each
            return of_head(q_BtGH, k_BSH, of_all if mask_BGts is None else mask_BGts)

        return jax.lax.map(one, (q_KBtGH, k_KBSH, of_each), batch_size=together)

    found = jax.lax.map(of_block, (q_nKBtGH, jnp.arange(blocks) * t))  # [n, K, B, t, G, k]
    return tuple(x.transpose(2, 0, 3, 1, 4, 5).reshape(B, blocks * t, N, k)[:, :T] for x in found)


def best(x_S: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns `lax.top_k(x, k)` of long rows, faster: the same values at the same places.

    The k best numbers are in the k groups with the greatest maxima: k others would be greater than
    one of another group. So the groups are searched, by groups of groups, and then their members.

    Args:
      x_S: numbers [..., S].
      k: how many, at most S.

    Returns:
      (values [..., k], falling, indices [..., k] int32; of equals the first).
    """
    S = x_S.shape[-1]
    if max(DIRECT, k * GROUP) >= S:
        return jax.lax.top_k(x_S, k)
    if S % GROUP:
        widths = [(0, 0)] * (x_S.ndim - 1) + [(0, -S % GROUP)]
        x_S = jnp.pad(x_S, widths, constant_values=-jnp.inf)
    x_gG = x_S.reshape(*x_S.shape[:-1], -1, GROUP)
    _, group_k = best(x_gG.max(axis=-1), k)
    group_k = jnp.sort(group_k, axis=-1)  # in the memory's order, or equals would come in another
    members_kG = jnp.take_along_axis(x_gG, group_k[..., None], axis=-2)
    values_k, place_k = jax.lax.top_k(members_kG.reshape(*group_k.shape[:-1], k * GROUP), k)
    of_group_k = jnp.take_along_axis(group_k, place_k // GROUP, axis=-1)
    return values_k, of_group_k * GROUP + place_k % GROUP


def _attend(q_RH, row_Rk, visible_Rk, k_XH, v_XH, *, scale, batch):
    """Returns (out_RH, p_Rk) of one row of the batch, a block of queries at a time."""
    (R, k), H = row_Rk.shape, q_RH.shape[-1]
    r = min(R, max(1, RETRIEVED // (batch * k * H)))

    @jax.checkpoint  # what was retrieved is k times as much as the queries
    def of_block(each):
        q_rH, row_rk, visible_rk = each
        k_rkH, v_rkH = (x.at[row_rk].get(mode="promise_in_bounds") for x in (k_XH, v_XH))
        logits_rk = scale * einsum("rH,rkH->rk", q_rH, k_rkH, out_dtype=jnp.float32)
        p_rk, total_r = scores.softmax(jnp.where(visible_rk, logits_rk, -jnp.inf))
        out_rH = einsum("rk,rkH->rH", p_rk.astype(v_rkH.dtype), v_rkH, out_dtype=jnp.float32)
        return (out_rH / total_r[:, None]).astype(q_rH.dtype), p_rk / total_r[:, None]

    each = (masks.lengthen(x, 0, -(-R // r) * r) for x in (q_RH, row_Rk, visible_Rk))
    each = tuple(x.reshape(-1, r, x.shape[-1]) for x in each)
    out, p = jax.lax.map(of_block, each)
    return out.reshape(-1, H)[:R], p.reshape(-1, k)[:R]


def _shapes(q_BTNH, k_BMKH, top_k, mask):
    q, k = q_BTNH.shape, k_BMKH.shape
    if len(q) != 4 or len(k) != 4 or q[0] != k[0] or q[3] != k[3]:
        raise ValueError(
            f"memory search: queries {q} and keys {k} must be [B, T, N, H] and [B, M, K, H]"
        )
    if k[2] < 1 or q[2] % k[2]:
        raise ValueError(f"memory search: {k[2]} key/value heads do not divide {q[2]} query heads")
    if top_k < 1:
        raise ValueError(f"memory search: top_k is {top_k}; it must be at least 1")
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError("memory search: mask must be a spec; wrap an array as masks.explicit(x)")
    return q, k
