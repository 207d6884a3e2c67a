"""Exact attention to a few keys near each query: the core of windows, blocks, global tokens.

Queries are cut into chunks; all that a chunk may see lies in one stretch of keys, of a width that
does not depend on the length, among a few extra keys that all may see (sinks, global tokens), and
in a few blocks drawn for each head and chunk (BigBird). So a chunk is one softmax over [extra keys,
stretch, drawn blocks]: time is O(T w). The backward pass keeps the output and the log-sum-exp and
computes a chunk's weights again (Dao et al., 2022, algorithm 4): memory is O(T). What exactly is
visible a mask says; the stretch only has to hold all of it.

Shapes: B batch, T queries, S keys, E extra keys, N heads, K key/value heads, G = N/K, H head width,
t and s the queries and keys of one chunk, q = G·t; R blocks of t keys are drawn for each chunk, e =
E + s + R·t keys in all. Queries are split into chunks i, I in number.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.attention import drawn_blocks, scores
from jaxformer.ops.attention.drawn_blocks import Drawn
from jaxformer.ops.dropout import dropout
from jaxformer.ops.masks import Mask

UNROLL = 2  # chunks of one step, whose small matmuls XLA's CPU runs side by side


class Setting(NamedTuple):
    """What is known before compilation."""

    scale: float
    soft_cap: float | None
    dropout_rate: float
    query_chunk: int
    width: int


class Extra(NamedTuple):
    """Keys that every chunk looks at; `mask` and `bias` are asked for their keys 0 ... E - 1."""

    k_BEKH: jax.Array
    v_BEKH: jax.Array
    mask: Mask | None = None
    bias: Any = None


class Arrays(NamedTuple):
    """What is computed with; parts are the extra keys, the stretch and what is drawn."""

    q_BKGTH: jax.Array
    k_BKSH: jax.Array
    v_BKSH: jax.Array
    k_BKEH: jax.Array
    v_BKEH: jax.Array
    biases: tuple[Any, Any, Any]


class Sight(NamedTuple):
    """Who sees what; it has no gradient."""

    start_i: jax.Array
    drawn_NIR: jax.Array | None
    masks: tuple[Mask | None, Mask | None, Mask | None]


def check(name: str, q_BTNH, k_BSKH, v_BSKH, mask, dropout_rate, key) -> None:
    """Raises ValueError for arguments of the function `name` that do not fit each other."""
    q, k, v = q_BTNH.shape, k_BSKH.shape, v_BSKH.shape
    if not len(q) == len(k) == 4 or k != v or q[0] != k[0] or q[3] != k[3] or q[2] % k[2]:
        raise ValueError(
            f"{name}: want q [B, T, N, H] and k, v of one shape [B, S, K, H] where K divides N, "
            f"not {q}, {k} and {v}"
        )
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError(f"{name}: mask must be a spec; wrap an array as masks.explicit(array)")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"{name}: dropout_rate must be in [0, 1), not {dropout_rate}")
    if dropout_rate > 0.0 and key is None:
        raise ValueError(f"{name}: dropout_rate > 0 needs a key; for evaluation give rate 0")


def banded(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    start_i: jax.Array,
    width: int,
    query_chunk: int,
    mask: Mask | None,
    bias: Any = None,
    extra: Extra | None = None,
    drawn: Drawn | None = None,
    scale: float,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (out_BTNH, lse_BNT): attention of each chunk of queries to its stretch of keys.

    Args:
      q_BTNH: queries.
      k_BSKH: keys.
      v_BSKH: values.
      start_i: int32, the first key of each chunk's stretch, one for each query_chunk queries; it
        is moved so that the stretch lies within the keys.
      width: keys of a stretch; more than S count as S.
      query_chunk: queries of one chunk.
      mask: what of its stretch a query may see; hides what is in `extra` too.
      bias: a bias spec, or None.
      extra: keys beside the stretch, or None.
      drawn: blocks of keys beside both, or None.
      scale: multiplies the logits.
      soft_cap: see `attention`.
      dropout_rate: see `attention`.
      key: random key, if dropout_rate > 0.

    Returns:
      The output in the queries' dtype, and float32 the log of the softmax's denominator, -inf where
      nothing may be attended to; both are differentiable.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    t = query_chunk
    more_T = -(-T // t) * t
    if extra is None or not extra.k_BEKH.shape[1]:
        nothing_B0KH = jnp.zeros((B, 0, K, H), k_BSKH.dtype)
        extra = Extra(nothing_B0KH, nothing_B0KH)
    of_extra, of_near = (None if m is None else m.padded(more_T, S) for m in (extra.mask, mask))
    near_bias, extra_bias = (scores.padded_bias(b, more_T, S) for b in (bias, extra.bias))
    setting = Setting(scale, soft_cap, dropout_rate, t, min(width, S))
    q_BKGTH = masks.lengthen(q_BTNH, 1, more_T).swapaxes(1, 2).reshape(B, K, N // K, more_T, H)
    start_i = jnp.clip(start_i, 0, S - setting.width).astype(jnp.int32)
    blocks_NIR, of_drawn, drawn_bias = None, None, None
    if drawn is not None:
        blocks_NIR, of_drawn = drawn.blocks_NIR, drawn_blocks.OfHeads(drawn.mask)
        drawn_bias = None if drawn.bias is None else drawn_blocks.OfHeads(drawn.bias)
    heads_first = (x.swapaxes(1, 2) for x in (k_BSKH, v_BSKH, extra.k_BEKH, extra.v_BEKH))
    k_BKSH, v_BKSH, k_BKEH, v_BKEH = heads_first
    biases = extra_bias, near_bias, drawn_bias
    arrays = Arrays(q_BKGTH, k_BKSH, v_BKSH, k_BKEH, v_BKEH, biases)
    sight = Sight(start_i, blocks_NIR, (of_extra, of_near, of_drawn))
    axes = frozenset().union(*(scores.varying_axes(x) for x in jax.tree.leaves((arrays, sight))))
    arrays, sight = jax.tree.map(lambda x: scores.vary(x, axes), (arrays, sight))
    out_BKGTH, lse_BKGT = _attend(setting, arrays, sight, key)
    out_BTNH = out_BKGTH.reshape(B, N, more_T, H).swapaxes(1, 2)[:, :T]
    return out_BTNH, lse_BKGT.reshape(B, N, more_T)[:, :, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting, arrays, sight, key):
    """Returns (out_BKGTH, lse_BKGT)."""
    B, K, G, T, H = arrays.q_BKGTH.shape
    dtype = arrays.q_BKGTH.dtype

    def one_chunk(i):
        logits_BKGte, _, (_, v_BKeH) = _logits(setting, i, arrays, sight)
        top_BKGt = logits_BKGte.max(axis=-1, initial=-jnp.inf)
        p_BKGte = jnp.exp(logits_BKGte - _finite(top_BKGt)[..., None])
        total_BKGt = p_BKGte.sum(axis=-1)
        nothing_BKGt = total_BKGt == 0.0
        p_BKqe = _joined(_dropped(setting, key, i, p_BKGte).astype(v_BKeH.dtype))
        out_BKGtH = scores.dot(p_BKqe, v_BKeH).reshape(B, K, G, -1, H)
        out_BKGtH = out_BKGtH / jnp.where(nothing_BKGt, 1.0, total_BKGt)[..., None]
        lse_BKGt = jnp.where(nothing_BKGt, -jnp.inf, top_BKGt + jnp.log(total_BKGt))
        return out_BKGtH.astype(dtype), lse_BKGt

    _, (out_iBKGtH, lse_iBKGt) = jax.lax.scan(
        lambda _, i: (None, one_chunk(i)), None, jnp.arange(T // setting.query_chunk), unroll=UNROLL
    )
    return _unchunk(out_iBKGtH), _unchunk(lse_iBKGt)


def _attend_forward(setting, arrays, sight, key):
    out_BKGTH, lse_BKGT = _attend(setting, arrays, sight, key)
    return (out_BKGTH, lse_BKGT), (arrays, sight, key, out_BKGTH, lse_BKGT)


def _attend_backward(setting, residuals, cotangents):
    arrays, sight, key, out_BKGTH, lse_BKGT = residuals
    q_BKGTH, k_BKSH, _, k_BKEH, _, biases = arrays
    d_out_BKGTH, d_lse_BKGT = cotangents
    (B, K, G, T, H), dtype, t = q_BKGTH.shape, q_BKGTH.dtype, setting.query_chunk
    S, E = k_BKSH.shape[2], k_BKEH.shape[2]
    inner_BKGT = (out_BKGTH.astype(jnp.float32) * d_out_BKGTH.astype(jnp.float32)).sum(axis=-1)
    inner_BKGT = inner_BKGT - d_lse_BKGT
    lse_BKGT = _finite(lse_BKGT)

    def one_chunk(carry, i):
        d_keys, d_extra, d_added = carry
        logits_BKGte, finish_backward, (k_BKeH, v_BKeH) = _logits(setting, i, arrays, sight)
        d_out_BKqH, q_BKqH = (
            _chunk(x, i, t).reshape(B, K, G * t, H) for x in (d_out_BKGTH, q_BKGTH)
        )
        inner_BKGt, lse_BKGt = (_chunk(x, i, t) for x in (inner_BKGT, lse_BKGT))
        p_BKGte = jnp.exp(logits_BKGte - lse_BKGt[..., None])
        p_BKqe = _joined(_dropped(setting, key, i, p_BKGte).astype(dtype))
        d_p_BKqe = scores.dot(d_out_BKqH, v_BKeH, transposed=True)
        d_p_BKGte = _dropped(setting, key, i, d_p_BKqe.reshape(p_BKGte.shape))
        d_raw_BKGte, d_biases = finish_backward(p_BKGte * (d_p_BKGte - inner_BKGt[..., None]))
        d_raw_BKqe = _joined((setting.scale * d_raw_BKGte).astype(dtype))
        q_BKHq, d_out_BKHq = (scores.transposed(x, (0, 1, 3, 2)) for x in (q_BKqH, d_out_BKqH))
        d_q_BKqH = scores.dot(d_raw_BKqe, k_BKeH)
        d_e = scores.dot(q_BKHq, d_raw_BKqe), scores.dot(d_out_BKHq, p_BKqe)
        s = E + setting.width
        parts = zip(d_added, biases, _indices(setting, i, sight, E), d_biases, strict=True)
        carry = (
            [_add(x, d[..., E:s], sight.start_i[i]) for x, d in zip(d_keys, d_e, strict=True)],
            [x + d[..., :E] for x, d in zip(d_extra, d_e, strict=True)],
            [scores.add_bias_gradient(*part) for part in parts],
        )
        d_q_BKGtH = d_q_BKqH.astype(dtype).reshape(B, K, G, t, H)
        return carry, (d_q_BKGtH, [d[..., s:] for d in d_e])

    zeros_BKHS, zeros_BKHE = (scores.zeros((B, K, H, n), q_BKGTH) for n in (S, E))
    start = ([zeros_BKHS] * 2, [zeros_BKHE] * 2, [scores.no_bias_gradient(b) for b in biases])
    carry, (d_q_iBKGtH, d_drawn) = jax.lax.scan(one_chunk, start, jnp.arange(T // t), unroll=UNROLL)
    d_keys, d_extra, d_added = carry
    if sight.drawn_NIR is not None:
        d_keys = [
            drawn_blocks.add(x, d, sight.drawn_NIR) for x, d in zip(d_keys, d_drawn, strict=True)
        ]
    d_k_BKSH, d_v_BKSH, d_k_BKEH, d_v_BKEH = (
        x.astype(k_BKSH.dtype).swapaxes(2, 3) for x in (*d_keys, *d_extra)
    )
    d_biases = tuple(scores.bias_cotangent(b, d) for b, d in zip(biases, d_added, strict=True))
    d_q_BKGTH = _unchunk(d_q_iBKGtH)
    return Arrays(d_q_BKGTH, d_k_BKSH, d_v_BKSH, d_k_BKEH, d_v_BKEH, d_biases), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(setting: Setting, i: jax.Array, arrays: Arrays, sight: Sight):
    """Returns a chunk's logits_BKGte, the way back from them, and its keys and values [B,K,e,H].

    The way back takes the logits' cotangent to those of the raw products, and of the biases.
    """
    (B, K, G, _, H), t = arrays.q_BKGTH.shape, setting.query_chunk
    drawn_NIR = sight.drawn_NIR
    R = 0 if drawn_NIR is None else drawn_NIR.shape[2]
    sizes = [arrays.k_BKEH.shape[2], setting.width, R * t]
    both = []
    for x_BKEH, x_BKSH in ((arrays.k_BKEH, arrays.k_BKSH), (arrays.v_BKEH, arrays.v_BKSH)):
        near = jax.lax.dynamic_slice_in_dim(x_BKSH, sight.start_i[i], setting.width, 2)
        drawn = [] if drawn_NIR is None else [drawn_blocks.take(x_BKSH, drawn_NIR[:, i], t)]
        both.append(jnp.concatenate([*([x_BKEH] if sizes[0] else []), near, *drawn], axis=2))
    q_BKqH = _chunk(arrays.q_BKGTH, i, t).reshape(B, K, G * t, H)
    raw_BKqe = setting.scale * scores.dot(q_BKqH, both[0], transposed=True)
    indices = _indices(setting, i, sight, sizes[0])
    asked = list(zip(sight.masks, arrays.biases, indices, sizes, strict=True))
    blocks = [scores.mask_block(m if size else None, *at) for m, _, at, size in asked]
    seen_BNte = _beside(blocks, sizes, True)
    added = [scores.bias_block(b if size else None, *at) for _, b, at, size in asked]

    def finish(raw_BKGte, added):
        # The parts of a bias are joined, not those of the logits parted: taking slices of an array
        # makes gradients that are sums of padded ones, several times slower.
        return scores.finish(raw_BKGte, _beside(added, sizes, 0.0), seen_BNte, setting.soft_cap)

    logits_BKGte, back = jax.vjp(finish, raw_BKqe.reshape(B, K, G, t, -1), added)
    return logits_BKGte, back, both


def _beside(blocks: list[Any], sizes: list[int], otherwise: Any) -> jax.Array | None:
    """Returns what masks or biases say of all keys of a chunk; None if they say nothing."""
    known = [x for x in blocks if x is not None]
    if not known:
        return None
    b, n, t = (max(x.shape[axis] for x in known) for axis in range(3))
    filled = [
        jnp.full((1, 1, 1, size), otherwise, known[0].dtype) if x is None else x
        for x, size in zip(blocks, sizes, strict=True)
        if size
    ]
    return jnp.concatenate([jnp.broadcast_to(x, (b, n, t, x.shape[3])) for x in filled], axis=3)


def _indices(setting: Setting, i: jax.Array, sight: Sight, E: int) -> list[tuple[Any, Any]]:
    """Returns which queries and keys each part holds; of what is drawn, keys_Ne."""
    t = setting.query_chunk
    rows, drawn_Ne = masks.Run(i * t, t), None
    if sight.drawn_NIR is not None:
        blocks_NR = sight.drawn_NIR[:, i]
        drawn_Ne = (blocks_NR[..., None] * t + jnp.arange(t)).reshape(blocks_NR.shape[0], -1)
    near = masks.Run(sight.start_i[i], setting.width)
    return [(rows, range(E)), (rows, near), (rows, drawn_Ne)]


def _dropped(setting: Setting, key: jax.Array | None, i, x_BKGte: jax.Array) -> jax.Array:
    """Drops by a key of the chunk, so that the backward drops the same."""
    if key is None:
        return x_BKGte
    return dropout(x_BKGte, setting.dropout_rate, jax.random.fold_in(key, i))


def _chunk(x_BKGT: jax.Array, i: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_BKGT, i * size, size, 3)


def _unchunk(x_iBKGt: jax.Array) -> jax.Array:
    x_BKGit = jnp.moveaxis(x_iBKGt, 0, 3)
    return x_BKGit.reshape(*x_BKGit.shape[:3], -1, *x_BKGit.shape[5:])


def _joined(x_BKGte: jax.Array) -> jax.Array:
    B, K, G, t, e = x_BKGte.shape
    return x_BKGte.reshape(B, K, G * t, e)


def _add(total_BKHS: jax.Array, more_BKHs: jax.Array, start: jax.Array) -> jax.Array:
    more_BKHs += jax.lax.dynamic_slice_in_dim(total_BKHS, start, more_BKHs.shape[3], 3)
    return jax.lax.dynamic_update_slice_in_dim(total_BKHS, more_BKHs, start, axis=3)


def _finite(x: jax.Array) -> jax.Array:
    """A row that sees nothing has maximum and log-sum-exp -inf; shift it by 0 instead."""
    return jnp.where(x == -jnp.inf, 0.0, x)
