"""Attention whose weights are products of features, by sums over keys: linear in the length.

out_t = phi(q_t) · sum over s of phi(k_s) v_s, divided by phi(q_t) · sum over s of phi(k_s)
(Katharopoulos et al., 2020, eq. 5). The sum before a query is a state of fixed size: one for all
queries, one that grows by chunks if causal, or two, from before and after, if packed.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, M features,
C places of a chunk, n chunks.
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

    num_features: int
    lowest: float  # of the exponents; 0 for features without one

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
    chunk: int = 256,
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
    check(name, q_BTNH, k_BSKH, v_BSKH, plain, chunk, state, return_state, return_weights)
    (B, _, _, H), K = q_BTNH.shape, k_BSKH.shape[2]
    start = init_sums(B, K, H, kernel) if state is None else state
    out_BTNH, end = _attend(q_BTNH, k_BSKH, v_BSKH, plain, start, chunk, kernel, normalised)
    results = [out_BTNH]
    if return_weights:
        results.append(_weights(q_BTNH, k_BSKH, plain, kernel, normalised))
    if return_state:
        results.append(end)
    return results[0] if len(results) == 1 else tuple(results)


def check(name, q, k, v, plain, chunk, state, return_state, return_weights) -> None:
    """Raises ValueError where these do not fit each other."""
    if not q.ndim == k.ndim == 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(
            f"{name}: needs q [B, T, N, H] and k and v [B, S, K, H], not {q.shape}, {k.shape} and "
            f"{v.shape}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{name}: {k.shape[2]} key/value heads do not divide {q.shape[2]} heads")
    if chunk < 1:
        raise ValueError(f"{name}: chunk must be 1 or more, not {chunk}")
    if (state is not None or return_state) and not (plain.causal and plain.aligned):
        raise ValueError(f"{name}: a state needs masks.causal() and as many keys as queries")
    if state is not None and return_weights:
        raise ValueError(f"{name}: the weights of a state's keys are gone; give no state")


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
    return join_queries(out, T).astype(q_BTNH.dtype), end


def _attend_chunk(state, chunk, *, kernel: Kernel, causal, packed, normalised):
    """Returns (state after the chunk, out_BKGCH float32)."""
    (q_BKGCH, q_ids_BC), (k_BKCH, v_BKCH, k_ids_BC), later = chunk
    who = seen(q_ids_BC, k_ids_BC, state.id_B, causal=causal, packed=packed)
    top_BKM = state.top_BKM if later is None else jnp.maximum(state.top_BKM, later.top_BKM)
    k_CM, top_BKM = kernel.of_keys(kernel.prepare(k_BKCH), (k_ids_BC != 0)[:, None], top_BKM)
    q_CM = kernel.of_queries(kernel.prepare(q_BKGCH), top_BKM[:, :, None])
    k_CM, q_CM = k_CM.astype(k_BKCH.dtype), q_CM.astype(q_BKGCH.dtype)
    a_BKGCC = einsum("BKGCM,BKDM->BKGCD", q_CM, k_CM, out_dtype=jnp.float32)
    a_BKGCC = jnp.where(who.inside_BCC[:, None, None], a_BKGCC, 0.0)
    out_CH = einsum(
        "BKGCD,BKDH->BKGCH", a_BKGCC.astype(v_BKCH.dtype), v_BKCH, out_dtype=jnp.float32
    )
    total_C = a_BKGCC.sum(axis=-1)
    before = _relative(state, top_BKM)
    for past, visible_BC in [(before, who.state_BC)] + (
        [] if later is None else [(_relative(later, top_BKM), _sees(q_ids_BC, later.id_B))]
    ):
        values_CH, weight_C = _query(q_CM, past)
        visible = visible_BC[:, None, None]
        out_CH += jnp.where(visible[..., None], values_CH, 0.0)
        total_C += jnp.where(visible, weight_C, 0.0)
    out_CH = finish(out_CH, total_C if normalised else None, q_ids_BC)
    return _add(before, k_CM, v_BKCH, top_BKM, who), out_CH


def _absorb(state, keys, *, kernel: Kernel, packed: bool, reverse: bool = False):
    """Returns the state after a chunk of keys."""
    k_BKCH, v_BKCH, k_ids_BC = keys
    who = seen(k_ids_BC, k_ids_BC, state.id_B, causal=False, packed=packed, reverse=reverse)
    a_CM = kernel.prepare(k_BKCH)
    k_CM, top_BKM = kernel.of_keys(a_CM, (k_ids_BC != 0)[:, None], state.top_BKM)
    return _add(_relative(state, top_BKM), k_CM.astype(k_BKCH.dtype), v_BKCH, top_BKM, who)


def _ask(queries, state, kernel: Kernel, normalised: bool):
    """Returns out_BKGCH, float32, of queries that see all of the state."""
    q_BKGCH, q_ids_BC = queries
    q_CM = kernel.of_queries(kernel.prepare(q_BKGCH), state.top_BKM[:, :, None])
    out_CH, total_C = _query(q_CM.astype(q_BKGCH.dtype), state)
    return finish(out_CH, total_C if normalised else None, q_ids_BC)


def _query(q_BKGCM, state) -> tuple[jax.Array, jax.Array]:
    """Returns the state's numerators [B, K, G, C, H] and denominators [B, K, G, C]."""
    values_CH = einsum("BKGCM,BKMH->BKGCH", q_BKGCM, state.values_BKMH, out_dtype=jnp.float32)
    weight_C = einsum("BKGCM,BKM->BKGC", q_BKGCM, state.weight_BKM, out_dtype=jnp.float32)
    return values_CH, weight_C


def finish(out_BKGCH, total_BKGC, q_ids_BC):
    """Returns the output, divided by the total weight if that is given; 0 where nothing is seen."""
    visible = (q_ids_BC != 0)[:, None, None]
    if total_BKGC is not None:
        visible = visible & (jnp.abs(total_BKGC) > _NOTHING)
        out_BKGCH /= jnp.where(visible, total_BKGC, 1.0)[..., None]
    return jnp.where(visible[..., None], out_BKGCH, 0.0)


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


def _sees(q_ids_BC, id_B):
    return (q_ids_BC == id_B[:, None]) & (q_ids_BC != 0)


def _weights(q_BTNH, k_BSKH, plain: PlainMask, kernel: Kernel, normalised: bool):
    """Returns the weights [B, N, T, S], each of them computed."""
    (B, T, N, _), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    [q_BKGTH], [k_BKSH] = cut_queries(q_BTNH, T, K), cut_keys(k_BSKH, S)
    shown = (plain.k_ids_BS != 0)[:, None]
    lowest = jnp.full((B, K, kernel.num_features), kernel.lowest)
    k_SM, top_BKM = kernel.of_keys(kernel.prepare(k_BKSH), shown, lowest)
    q_TM = kernel.of_queries(kernel.prepare(q_BKGTH), top_BKM[:, :, None])
    a_BKGTS = einsum("BKGTM,BKSM->BKGTS", q_TM, k_SM, out_dtype=jnp.float32)
    a_BKGTS = jnp.where(plain.pairs()[:, None, None], a_BKGTS, 0.0)
    return (normalise(a_BKGTS) if normalised else a_BKGTS).reshape(B, N, T, S)


def normalise(a_S: jax.Array) -> jax.Array:
    """Returns weights [..., S] divided by their sum; 0 where that is nothing."""
    total_1 = a_S.sum(axis=-1, keepdims=True)
    is_some = jnp.abs(total_1) > _NOTHING
    return jnp.where(is_some, a_S / jnp.where(is_some, total_1, 1.0), 0.0)
