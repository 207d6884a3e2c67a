"""Linear attention, with or without a decay of the past.

Without: out_t = phi(q_t) · sum of phi(k_s) v_s, over phi(q_t) · sum of phi(k_s), phi = elu + 1
(Katharopoulos et al., 2020, eq. 5-7). With: the state is multiplied by exp(log_decay) before a
token joins it, S_t = exp(g_t) S_(t-1) + k_t v_t^T, out_t = q_t S_t: one constant a head in RetNet
(Sun et al., 2023, eq. 6), gates from the data in GLA (Yang et al., 2024, eq. 3), one a head (also
Mamba-2) or one a channel.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, X width of a
gate (H, or 1 for one a head), C places of a chunk, h places of half a block, m blocks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.attention.kernel_sums import (
    SumState,
    checked,
    finish,
    init_sums,
    kernel_attention,
    normalise,
)
from jaxformer.ops.attention.plain_mask import PlainMask, one_line, plain_mask
from jaxformer.ops.attention.prefix_sums import (
    cut,
    cut_keys,
    cut_queries,
    join_queries,
    over_chunks,
    seen,
)
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

KERNELS = ("elu", "identity")
FORMS = ("chunked", "recurrent", "parallel")


def linear_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    log_decay: jax.Array | None = None,
    kernel: str = "elu",
    normalised: bool | None = None,
    form: str = "chunked",
    chunk: int = 64,
    state: SumState | None = None,
    return_state: bool = False,
    return_weights: bool = False,
) -> Any:
    """Attention by a feature map, in O((T + S) H²) a head, whose past may fade.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      mask: None or parts joined by `&`: `masks.causal`, `lengths`, `segments`, and `explicit` that
        hides keys or queries. With T == S and one array of segment ids, the tokens of a segment
        must stand side by side, as packing puts them.
      bias: must be None: the weight of a single pair is never computed.
      scale: multiplies the weights; 1/sqrt(H) if None (and without effect if normalised).
      log_decay: at most 0; [N] (of `retention_log_decay`), [B, T, N] or [B, T, N, H]. Needs a
        causal mask. None: nothing fades.
      kernel: "elu": phi(x) = elu(x) + 1; "identity": phi(x) = x, as RetNet and GLA.
      normalised: divide by the sum of the weights; None: for "elu" only.
      form: "chunked"; "recurrent", token by token; or "parallel", in O(T S): all give the same.
      chunk: tokens that meet in one matrix, with a decay rounded up to a power of two; changes
        nothing but speed and memory.
      state: what came before (of `init_state` or of an earlier call); needs a causal mask, T == S.
      return_state: return the state after these tokens too; needs the same.
      return_weights: return the weights float32 [B, N, T, S] too, at O(T S) memory.

    Returns:
      out_BTNH in the dtype of the queries, then the weights and the state, where asked for.

    Raises:
      ValueError: a bias, a mask or an argument that cannot be honoured; what is valid is said.
    """
    name = "linear_attention"
    if bias is not None:
        raise ValueError(f"{name}: cannot honour a bias, for no pair is weighed; give bias=None")
    for what, given, valid in (("kernel", kernel, KERNELS), ("form", form, FORMS)):
        if given not in valid:
            raise ValueError(f"{name}: {what} {given!r} is not one of {', '.join(valid)}")
    (T, H), S = q_BTNH.shape[1::2], k_BSKH.shape[1]
    plain = plain_mask(mask, name, T, S)
    if log_decay is not None and log_decay.ndim > 1 and plain.in_place:
        plain = plain._replace(aligned=True)  # a token has one decay, as query and as key
    normalised = kernel == "elu" if normalised is None else normalised
    scale = H**-0.5 if scale is None else scale
    phi = _Map(H, kernel, 1.0 if normalised else scale)
    chunk = 1 if form == "recurrent" else chunk
    more: dict[str, Any] = {
        "state": state,
        "return_state": return_state,
        "return_weights": return_weights,
    }
    if form == "parallel":
        return _parallel(q_BTNH, k_BSKH, v_BSKH, plain, log_decay, phi, normalised, **more)
    if log_decay is None:
        return kernel_attention(
            name, q_BTNH, k_BSKH, v_BSKH, plain, phi, normalised=normalised, chunk=chunk, **more
        )
    plain = checked(name, q_BTNH, k_BSKH, v_BSKH, plain, chunk, **more)
    out_BTNH, end = _decayed(
        q_BTNH, k_BSKH, v_BSKH, plain, log_decay, phi, normalised, chunk, state
    )
    results = [out_BTNH]
    if return_weights:
        results.append(_weights(q_BTNH, k_BSKH, plain, log_decay, phi, normalised))
    if return_state:
        results.append(end)
    return results[0] if len(results) == 1 else tuple(results)


def retention_log_decay(num_heads: int) -> jax.Array:
    """RetNet's decays: log(1 - 2^(-5 - n)) of head n (Sun et al., 2023, section 2.2); [N]."""
    return jnp.log1p(-jnp.exp2(-5.0 - jnp.arange(num_heads, dtype=jnp.float32)))


def init_state(
    batch_size: int, num_heads: int, num_kv_heads: int, head_dim: int, *, decayed: bool
) -> SumState:
    """Returns what a layer knows before the first token; decayed, each query head has its own."""
    heads = num_heads if decayed else num_kv_heads
    return init_sums(batch_size, heads, head_dim, _Map(head_dim, "identity", 1.0))


class _Map(NamedTuple):
    """The feature map; the scale goes to the queries."""

    num_features: int
    name: str
    scale: Any
    lowest: float = 0.0

    def prepare(self, x_CH):
        return jax.nn.elu(x_CH.astype(jnp.float32)) + 1.0 if self.name == "elu" else x_CH

    def of_keys(self, a_CM, shown_C, top_M):
        return jnp.where(shown_C[..., None], a_CM, 0), top_M

    def of_queries(self, a_CM, top_M):
        return a_CM * self.scale


def _gates(log_decay, q_BTNH, plain: PlainMask, line) -> jax.Array:
    """Returns log decays [B|1, L, N, X] before each place of the line that the loop runs along."""
    B, T, N, H = q_BTNH.shape
    name = "linear_attention"
    if not plain.causal:
        raise ValueError(f"{name}: a decay needs an order; give masks.causal(), or no log_decay")
    if log_decay.shape == (N,):
        if line is None:
            return jnp.broadcast_to(log_decay.astype(jnp.float32)[:, None], (1, T, N, 1))
        # From one place to the next the past fades by the positions between them.
        steps_BL = jnp.diff(line.position_BL, axis=1, prepend=line.position_BL[:, :1])
        # Where a new segment begins the step may go back; nothing is seen across it.
        steps_BL = jnp.maximum(steps_BL, 0).astype(jnp.float32)
        return steps_BL[:, :, None, None] * log_decay.astype(jnp.float32)[:, None]
    if log_decay.shape not in ((B, T, N), (B, T, N, H)):
        raise ValueError(
            f"{name}: log_decay must be [{N}], {[B, T, N]} or {[B, T, N, H]}, not "
            f"{list(log_decay.shape)}"
        )
    if line is not None:
        raise ValueError(f"{name}: a decay for each token needs queries and keys to be one line")
    return log_decay.reshape(B, T, N, -1).astype(jnp.float32)


def _decayed(q_BTNH, k_BSKH, v_BSKH, plain: PlainMask, log_decay, phi, normalised, chunk, state):
    """Returns (out_BTNH, state)."""
    (B, _, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    line = None if plain.aligned or not plain.causal else one_line(plain)
    g_BTNX = _gates(log_decay, q_BTNH, plain, line)
    q_ids, k_ids = plain.q_ids_BT, plain.k_ids_BS
    if line is not None:
        q_BTNH, k_BSKH, v_BSKH = line.queries(q_BTNH), line.keys(k_BSKH), line.keys(v_BSKH)
        q_ids, k_ids = line.q_ids_BL, line.k_ids_BL
    L = q_BTNH.shape[1]
    size = 1 << (min(chunk, L) - 1).bit_length()
    chunks = (
        cut_queries(q_BTNH, size, N), cut_keys(k_BSKH, size), cut_keys(v_BSKH, size),
        cut_keys(g_BTNX, size), cut(q_ids, size), cut(k_ids, size),
    )  # fmt: skip
    start = init_sums(B, N, H, phi) if state is None else state
    step = functools.partial(
        _decayed_chunk, phi=phi, normalised=normalised, packed=plain.packed, group=N // K
    )
    end, out = over_chunks(step, start, chunks)
    out_BLNH = join_queries(out, size, L).astype(q_BTNH.dtype)
    return (out_BLNH if line is None else line.back(out_BLNH)), end


def _decayed_chunk(state, chunk, *, phi, normalised, packed, group):
    """Returns (state after the chunk, out_BNCH float32)."""
    q_BNCH, k_BKCH, v_BKCH, g_BNCX, q_ids_BC, k_ids_BC = chunk
    who = seen(q_ids_BC, k_ids_BC, state.id_B, causal=True, packed=packed)
    shown_B1C = (k_ids_BC != 0)[:, None]
    q_BNCH = phi.of_queries(phi.prepare(q_BNCH), None)
    k_BNCH = jnp.repeat(phi.of_keys(phi.prepare(k_BKCH), shown_B1C, None)[0], group, axis=1)
    v_BNCH = jnp.repeat(v_BKCH, group, axis=1)
    dtype = v_BNCH.dtype
    ids = (q_ids_BC, k_ids_BC) if packed else None
    out, total, since_BNCX, until_BNCX = _inside(q_BNCH, k_BNCH, v_BNCH, g_BNCX, ids)
    # What was before the chunk, faded.
    faded_BNCH = jnp.where(who.state_BC[:, None, :, None], q_BNCH * jnp.exp(since_BNCX), 0)
    out += einsum("BNCH,BNHJ->BNCJ", faded_BNCH.astype(dtype), state.values_BKMH,
                  out_dtype=jnp.float32)  # fmt: skip
    total += (faded_BNCH.astype(jnp.float32) * state.weight_BKM[:, :, None]).sum(axis=-1)
    # What the chunk leaves.
    left_BNCH = jnp.where(who.joins_BC[:, None, :, None], k_BNCH * jnp.exp(until_BNCX), 0)
    fade_BNX = jnp.exp(since_BNCX[:, :, -1])
    if who.stays_B is not None:
        fade_BNX = jnp.where(who.stays_B[:, None, None], fade_BNX, 0.0)
    values = state.values_BKMH * fade_BNX[..., None] + einsum(
        "BNCH,BNCJ->BNHJ", left_BNCH.astype(dtype), v_BNCH, out_dtype=jnp.float32
    )
    weight = state.weight_BKM * fade_BNX + left_BNCH.astype(jnp.float32).sum(axis=2)
    state = SumState(values, weight, state.top_BKM, who.id_B)
    return state, finish(out, total if normalised else None, q_ids_BC)


def _inside(q_BNCH, k_BNCH, v_BNCH, g_BNCX, ids):
    """Returns a chunk's own part: numerators, denominators, and its decays since and until.

    A weight within the chunk is q · exp(g between the two) · k. To make it a matmul the exponent is
    split in two at a place between key and query, so that both halves are negative, however strong
    the decay: the chunk is halved, and its halves again; keys left of a middle meet queries right
    of it (the secondary chunks of Yang et al., 2024, section 4.3, carried to the end).

    since_C is the sum of g from the block's start up to the place, with its own; until_C from the
    place, without its own, to the block's end. They grow with the blocks.
    """
    B, N, C, H = q_BNCH.shape
    dtype = v_BNCH.dtype
    own_BNC = (q_BNCH.astype(jnp.float32) * k_BNCH.astype(jnp.float32)).sum(axis=-1)
    if ids is not None:
        own_BNC = jnp.where((ids[0] == ids[1])[:, None], own_BNC, 0.0)
    out_BNCH, total_BNC = own_BNC[..., None] * v_BNCH.astype(jnp.float32), own_BNC
    since, until = g_BNCX, jnp.zeros_like(g_BNCX)
    h = 1
    while h < C:
        m = C // (2 * h)

        def halves(x, axis=2, m=m, h=h):
            x = x.reshape(*x.shape[:axis], m, 2, h, *x.shape[axis + 1 :])
            return jnp.take(x, 0, axis=axis + 1), jnp.take(x, 1, axis=axis + 1)

        (s_left, s_right), (u_left, u_right) = halves(since), halves(until)
        q_right = (halves(q_BNCH)[1] * jnp.exp(s_right)).astype(dtype)
        k_left = (halves(k_BNCH)[0] * jnp.exp(u_left)).astype(dtype)
        a_BNmhh = einsum("BNmhH,BNmjH->BNmhj", q_right, k_left, out_dtype=jnp.float32)
        if ids is not None:
            same = halves(ids[0], 1)[1][..., None] == halves(ids[1], 1)[0][:, :, None]
            a_BNmhh = jnp.where(same[:, None], a_BNmhh, 0.0)
        right = einsum("BNmhj,BNmjH->BNmhH", a_BNmhh.astype(dtype), halves(v_BNCH)[0],
                       out_dtype=jnp.float32)  # fmt: skip
        both = jnp.stack([jnp.zeros_like(right), right], axis=3)
        out_BNCH += both.reshape(B, N, C, H)
        sums = a_BNmhh.sum(axis=-1)
        total_BNC += jnp.stack([jnp.zeros_like(sums), sums], axis=3).reshape(B, N, C)
        since = jnp.stack([s_left, s_right + s_left[..., -1:, :]], axis=3)
        # All of the right half fades the left one: its sum is what is since its start at its end.
        until = jnp.stack([u_left + s_right[..., -1:, :], u_right], axis=3)
        since, until = (x.reshape(g_BNCX.shape) for x in (since, until))
        h *= 2
    return out_BNCH, total_BNC, since, until


def _weights(q_BTNH, k_BSKH, plain: PlainMask, log_decay, phi, normalised):
    """Returns the weights [B, N, T, S]: by a scan over queries, as what is left of each key."""
    (B, T, N, _), S = q_BTNH.shape, k_BSKH.shape[1]
    q_TBNH = jnp.moveaxis(phi.of_queries(phi.prepare(q_BTNH.astype(jnp.float32)), None), 1, 0)
    k_BSNH = jnp.repeat(phi.prepare(k_BSKH.astype(jnp.float32)), N // k_BSKH.shape[2], axis=2)
    if log_decay is None:
        a_BNTS = einsum("TBNH,BSNH->BNTS", q_TBNH, k_BSNH)
    elif log_decay.ndim == 1:
        _gates(log_decay, q_BTNH, plain, None)
        row_T1 = jnp.arange(T)[:, None] + plain.offset
        distance_TS = jnp.maximum(row_T1 - jnp.arange(S), 0).astype(jnp.float32)
        fade_NTS = jnp.exp(distance_TS * log_decay.astype(jnp.float32)[:, None, None])
        a_BNTS = einsum("TBNH,BSNH->BNTS", q_TBNH, k_BSNH) * fade_NTS
    else:
        g_BTNX = _gates(log_decay, q_BTNH, plain, None if plain.aligned else ())

        def row(left_BSNX, x):
            q_BNH, g_BNX, t = x
            left_BSNX = jnp.where(
                jnp.arange(S)[:, None, None] < t, left_BSNX * jnp.exp(g_BNX)[:, None], 1.0
            )
            return left_BSNX, jnp.einsum("BNH,BSNH->BNS", q_BNH, k_BSNH * left_BSNX)

        start = jnp.ones((B, S, N, g_BTNX.shape[-1]))
        _, a_TBNS = jax.lax.scan(row, start, (q_TBNH, jnp.moveaxis(g_BTNX, 1, 0), jnp.arange(T)))
        a_BNTS = jnp.moveaxis(a_TBNS, 0, 2)
    a_BNTS = jnp.where(plain.pairs()[:, None], a_BNTS, 0.0)
    return normalise(a_BNTS) if normalised else a_BNTS


def _parallel(
    q, k, v, plain: PlainMask, log_decay, phi, normalised, *, state, return_state, return_weights
):
    """Returns what the other forms do, by all weights at once."""
    checked("linear_attention", q, k, v, plain, 1, state, return_state, return_weights)
    if state is not None or return_state:
        raise ValueError("linear_attention: form='parallel' has no state; use 'chunked'")
    weights_BNTS = _weights(q, k, plain, log_decay, phi, normalised)
    v_BSNH = jnp.repeat(v, q.shape[2] // k.shape[2], axis=2).astype(jnp.float32)
    out_BTNH = einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH).astype(q.dtype)
    return (out_BTNH, weights_BNTS) if return_weights else out_BTNH
