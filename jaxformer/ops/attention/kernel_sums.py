"""Attention whose weights are products of features, by sums over keys: linear in the length.

out_t = phi(q_t) · sum over s of phi(k_s) v_s, divided by phi(q_t) · sum over s of phi(k_s)
(Katharopoulos et al., 2020, eq. 5). The sum before a query is a state of fixed size: one for all
queries, one that grows by chunks if causal, or two, from before and after, if packed.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, M features,
C places of a chunk, n chunks, R = G C rows of a chunk's queries.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxformer.ops.attention.plain_mask import PlainMask, one_line
from jaxformer.ops.attention.prefix_sums import (
    cut,
    cut_keys,
    cut_queries,
    join_queries,
    over_chunks,
    seen,
)
from jaxformer.ops.linear import einsum

LOWEST = -1e30  # below all exponents, and finite: differences of it with itself are 0
_NOTHING = 1e-30  # a total weight below this has lost its digits: what it would divide is noise


class SumState(NamedTuple):
    """What the past weighs: sums over its keys, relative to each feature's largest exponent.

    Attributes:
      values_BKMH: float32, the sum over keys of feature times value.
      weight_BKM: float32, the sum over keys of the feature.
      top_BKM: float32, the exponent that both are relative to; 0 for features without one.
      id_B: int32, the segment that the keys belong to.
    """

    values_BKMH: jax.Array
    weight_BKM: jax.Array
    top_BKM: jax.Array
    id_B: jax.Array


class Kernel(Protocol):
    """A feature map in two steps, so that exponents can be made safe between them."""

    @property
    def num_features(self) -> int:
        """Returns M."""

    @property
    def lowest(self) -> float:
        """Returns the top of no key at all; 0 for features without exponents."""

    def prepare(self, x_CH: jax.Array) -> jax.Array:
        """Returns [..., C, M]: the exponents of the features, or the features."""

    def of_keys(self, a_CM: jax.Array, shown_C: jax.Array, top_M: jax.Array) -> tuple:
        """Returns features relative to the largest exponents so far, and these [..., M]."""

    def of_queries(self, a_CM: jax.Array, top_M: jax.Array) -> jax.Array:
        """Returns features that undo what `of_keys` did, relative to anything of the query's."""


def init_sums(batch_size: int, num_kv_heads: int, head_dim: int, kernel: Kernel) -> SumState:
    """Returns the state before the first token."""
    shape = (batch_size, num_kv_heads, kernel.num_features)
    return SumState(
        jnp.zeros((*shape, head_dim), jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.full(shape, kernel.lowest, jnp.float32),
        jnp.zeros(batch_size, jnp.int32),
    )


def kernel_attention(
    name: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    plain: PlainMask,
    kernel: Kernel,
    *,
    normalised: bool = True,
    chunk: int = 128,
    state: SumState | None = None,
    return_state: bool = False,
    return_weights: bool = False,
) -> Any:
    """Attends by a feature map.

    Args:
      name: of the variant, for messages.
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      plain: of `plain_mask`.
      kernel: the feature map.
      normalised: divide by the sum of the weights.
      chunk: tokens that meet in one matrix; changes nothing but speed and memory.
      state: what came before; needs a causal mask and T == S.
      return_state: return the state after these tokens too; needs the same.
      return_weights: return float32 [B, N, T, S] too.

    Returns:
      out_BTNH in the dtype of the queries, then the weights and the state, where asked for.

    Raises:
      ValueError: shapes that do not fit, or a state where there cannot be one.
    """
    plain = checked(name, q_BTNH, k_BSKH, v_BSKH, plain, chunk, state, return_state, return_weights)
    (B, _, _, H), K = q_BTNH.shape, k_BSKH.shape[2]
    start = init_sums(B, K, H, kernel) if state is None else state
    out_BTNH, end = _attend(q_BTNH, k_BSKH, v_BSKH, plain, start, chunk, kernel, normalised)
    results = [out_BTNH]
    if return_weights:
        results.append(_weights(q_BTNH, k_BSKH, plain, kernel, normalised))
    if return_state:
        results.append(end)
    return results[0] if len(results) == 1 else tuple(results)


def checked(
    name, q, k, v, plain: PlainMask, chunk, state, return_state, return_weights
) -> PlainMask:
    """Returns the mask, of one line if there is a state; raises ValueError for what cannot be."""
    if not q.ndim == k.ndim == 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(
            f"{name}: needs q [B, T, N, H] and k and v [B, S, K, H], not {q.shape}, {k.shape} and "
            f"{v.shape}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{name}: {k.shape[2]} key/value heads do not divide {q.shape[2]} heads")
    if chunk < 1:
        raise ValueError(f"{name}: chunk must be 1 or more, not {chunk}")
    stateful = state is not None or return_state
    if stateful and not (plain.causal and plain.in_place):
        raise ValueError(f"{name}: a state needs masks.causal() and as many keys as queries")
    if state is not None and return_weights:
        raise ValueError(f"{name}: the weights of a state's keys are gone; give no state")
    return plain._replace(aligned=plain.aligned or stateful)


def _attend(q_BTNH, k_BSKH, v_BSKH, plain: PlainMask, start, chunk, kernel: Kernel, normalised):
    """Returns (out_BTNH, state); the state is that after the line, if causal and aligned."""
    if (plain.causal or plain.packed) and not plain.aligned:
        line = one_line(plain)
        plain = plain._replace(q_ids_BT=line.q_ids_BL, k_ids_BS=line.k_ids_BL, aligned=True)
        q, k, v = line.queries(q_BTNH), line.keys(k_BSKH), line.keys(v_BSKH)
        out_BLNH, end = _attend(q, k, v, plain, start, chunk, kernel, normalised)
        return line.back(out_BLNH), end
    T, (S, K) = q_BTNH.shape[1], k_BSKH.shape[1:3]
    q_size, k_size = min(chunk, T), min(chunk, S)
    queries = cut_queries(q_BTNH, q_size, K), cut(plain.q_ids_BT, q_size)
    keys = cut_keys(k_BSKH, k_size), cut_keys(v_BSKH, k_size), cut(plain.k_ids_BS, k_size)
    step = functools.partial(
        _attend_chunk, kernel=kernel, causal=plain.causal, packed=plain.packed,
        normalised=normalised,
    )  # fmt: skip
    if plain.causal:
        end, out = over_chunks(step, start, (queries, keys, None))
    elif plain.packed:
        # A query sees its run in three parts: its chunk, the state from before, that from after.
        back = functools.partial(_absorb, kernel=kernel, packed=True, reverse=True)
        _, later = over_chunks(lambda state, x: (back(state, x), state), start, keys, reverse=True)
        end, out = over_chunks(step, start, (queries, keys, later))
    else:
        absorb = functools.partial(_absorb, kernel=kernel, packed=False)
        end, _ = over_chunks(lambda state, x: (absorb(state, x), None), start, keys)
        ask = functools.partial(_ask, kernel=kernel, normalised=normalised)
        _, out = over_chunks(lambda _, x: (None, ask(x, end)), None, queries)
    return join_queries(out, q_size, T).astype(q_BTNH.dtype), end


def _attend_chunk(state, chunk, *, kernel: Kernel, causal, packed, normalised):
    """Returns (state after the chunk, out_BKRH float32)."""
    (q_BKRH, q_ids_BC), (k_BKCH, v_BKCH, k_ids_BC), later = chunk
    group = q_BKRH.shape[2] // k_BKCH.shape[2]
    who = seen(q_ids_BC, k_ids_BC, state.id_B, causal=causal, packed=packed)
    top_BKM = state.top_BKM if later is None else jnp.maximum(state.top_BKM, later.top_BKM)
    k_BKCM, top_BKM = kernel.of_keys(kernel.prepare(k_BKCH), (k_ids_BC != 0)[:, None], top_BKM)
    q_BKRM = kernel.of_queries(kernel.prepare(q_BKRH), top_BKM)
    k_BKCM, q_BKRM = k_BKCM.astype(k_BKCH.dtype), q_BKRM.astype(q_BKRH.dtype)
    a_BKRC = einsum("BKRM,BKCM->BKRC", q_BKRM, k_BKCM, out_dtype=jnp.float32)
    a_BKRC = jnp.where(jnp.tile(who.inside_BCC, (1, group, 1))[:, None], a_BKRC, 0.0)
    out_BKRH = einsum("BKRC,BKCH->BKRH", a_BKRC.astype(v_BKCH.dtype), v_BKCH, out_dtype=jnp.float32)
    total_BKR = a_BKRC.sum(axis=-1)
    before = _relative(state, top_BKM)
    pasts = [(before, who.state_BC)]
    if later is not None:
        also_BC = (q_ids_BC == later.id_B[:, None]) & (q_ids_BC != 0)
        pasts.append((_relative(later, top_BKM), also_BC))
    for past, visible_BC in pasts:
        values_BKRH, weight_BKR = _query(q_BKRM, past)
        visible_B1R = jnp.tile(visible_BC, (1, group))[:, None]
        out_BKRH += jnp.where(visible_B1R[..., None], values_BKRH, 0.0)
        total_BKR += jnp.where(visible_B1R, weight_BKR, 0.0)
    out_BKRH = finish(out_BKRH, total_BKR if normalised else None, q_ids_BC)
    return _add(before, k_BKCM, v_BKCH, top_BKM, who), out_BKRH


def _absorb(state, keys, *, kernel: Kernel, packed: bool, reverse: bool = False):
    """Returns the state after a chunk of keys."""
    k_BKCH, v_BKCH, k_ids_BC = keys
    who = seen(k_ids_BC, k_ids_BC, state.id_B, causal=False, packed=packed, reverse=reverse)
    a_CM = kernel.prepare(k_BKCH)
    k_CM, top_BKM = kernel.of_keys(a_CM, (k_ids_BC != 0)[:, None], state.top_BKM)
    return _add(_relative(state, top_BKM), k_CM.astype(k_BKCH.dtype), v_BKCH, top_BKM, who)


def _ask(queries, state, kernel: Kernel, normalised: bool):
    """Returns out_BKRH, float32, of queries that see all of the state."""
    q_BKRH, q_ids_BC = queries
    q_BKRM = kernel.of_queries(kernel.prepare(q_BKRH), state.top_BKM)
    out_BKRH, total_BKR = _query(q_BKRM.astype(q_BKRH.dtype), state)
    return finish(out_BKRH, total_BKR if normalised else None, q_ids_BC)


def _query(q_BKRM, state) -> tuple[jax.Array, jax.Array]:
    """Returns the state's numerators [B, K, R, H] and denominators [B, K, R]."""
    values_BKRH = einsum("BKRM,BKMH->BKRH", q_BKRM, state.values_BKMH, out_dtype=jnp.float32)
    weight_BKR = (q_BKRM.astype(jnp.float32) * state.weight_BKM[:, :, None]).sum(axis=-1)
    return values_BKRH, weight_BKR


def finish(out_BKRH, total_BKR, q_ids_BC):
    """Returns the output, divided by the total weight if that is given; 0 where nothing is seen."""
    visible = jnp.tile(q_ids_BC != 0, (1, out_BKRH.shape[2] // q_ids_BC.shape[1]))[:, None]
    if total_BKR is not None:
        visible = visible & (jnp.abs(total_BKR) > _NOTHING)
        out_BKRH /= jnp.where(visible, total_BKR, 1.0)[..., None]
    return jnp.where(visible[..., None], out_BKRH, 0.0)


def _relative(state, top_BKM):
    """Returns the state relative to higher exponents."""
    shrink_BKM = jnp.exp(state.top_BKM - top_BKM)
    values_BKMH = state.values_BKMH * shrink_BKM[..., None]
    return state._replace(values_BKMH=values_BKMH, weight_BKM=state.weight_BKM * shrink_BKM)


def _add(state, k_BKCM, v_BKCH, top_BKM, who):
    """Returns the state (relative to `top_BKM`) and the chunk's keys that join it."""
    k_BKCM = jnp.where(who.joins_BC[:, None, :, None], k_BKCM, 0)
    values_BKMH, weight_BKM = state.values_BKMH, state.weight_BKM
    if who.stays_B is not None:
        stays = who.stays_B[:, None, None]
        values_BKMH = jnp.where(stays[..., None], values_BKMH, 0.0)
        weight_BKM = jnp.where(stays, weight_BKM, 0.0)
    values_BKMH += einsum("BKCM,BKCH->BKMH", k_BKCM, v_BKCH, out_dtype=jnp.float32)
    weight_BKM += k_BKCM.astype(jnp.float32).sum(axis=-2)
    return SumState(values_BKMH, weight_BKM, top_BKM, who.id_B)


def _weights(q_BTNH, k_BSKH, plain: PlainMask, kernel: Kernel, normalised: bool):
    """Returns the weights [B, N, T, S], each of them computed."""
    (B, T, N, _), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    [q_BKRH], [k_BKSH] = cut_queries(q_BTNH, T, K), cut_keys(k_BSKH, S)
    shown_B1S = (plain.k_ids_BS != 0)[:, None]
    lowest_BKM = jnp.full((B, K, kernel.num_features), kernel.lowest)
    k_BKSM, top_BKM = kernel.of_keys(kernel.prepare(k_BKSH), shown_B1S, lowest_BKM)
    q_BKRM = kernel.of_queries(kernel.prepare(q_BKRH), top_BKM)
    a_BNTS = einsum("BKRM,BKSM->BKRS", q_BKRM, k_BKSM, out_dtype=jnp.float32).reshape(B, N, T, S)
    a_BNTS = jnp.where(plain.pairs()[:, None], a_BNTS, 0.0)
    return normalise(a_BNTS) if normalised else a_BNTS


def normalise(a_S: jax.Array) -> jax.Array:
    """Returns weights [..., S] divided by their sum; 0 where that is nothing."""
    total_1 = a_S.sum(axis=-1, keepdims=True)
    is_some = jnp.abs(total_1) > _NOTHING
    return jnp.where(is_some, a_S / jnp.where(is_some, total_1, 1.0), 0.0)
