"""Each way to attend as its paper defines it: all pairs at once, no care for cost.

`xp` is numpy, or jax.numpy where gradients are wanted; both in float64.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, M features, C mixtures
or places of a block, P landmarks.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tests.conformance.case import Case


def all_heads(xp: Any, x_BSKH: Any, case: Case) -> Any:
    return xp.repeat(x_BSKH, case.N // case.K, axis=2)


def logits(xp: Any, q: Any, k: Any, case: Case, scale: float | None = None) -> Any:
    scale = case.H**-0.5 if scale is None else scale
    return scale * xp.einsum("btnh,bsnh->bnts", q, all_heads(xp, k, case))


def softmax(xp: Any, logits_BNTS: Any, times_BNTS: Any) -> Any:
    """Returns weights where each key counts so many times; rows of none are 0."""
    top = xp.where(times_BNTS > 0, logits_BNTS, -1e30).max(axis=-1, keepdims=True)
    p = times_BNTS * xp.exp(xp.where(times_BNTS > 0, logits_BNTS - top, 0.0))
    return normalised(xp, p)


def normalised(xp: Any, p_BNTS: Any) -> Any:
    total = p_BNTS.sum(axis=-1, keepdims=True)
    return p_BNTS / xp.where(total == 0, 1.0, total)


def values(xp: Any, weights_BNTS: Any, v: Any, case: Case) -> Any:
    return xp.einsum("bnts,bsnh->btnh", weights_BNTS, all_heads(xp, v, case))


def pattern(xp: Any, q: Any, k: Any, v: Any, case: Case, near: Any, soft_cap=None) -> Any:
    """softmax attention where the mask and `near` (bool or counts, [N|1, T, S]) allow it."""
    a = logits(xp, q, k, case)
    a = a if soft_cap is None else soft_cap * xp.tanh(a / soft_cap)
    return values(xp, softmax(xp, a, case.seen() * np.asarray(near, np.float64)), v, case)


def plain(xp: Any, q, k, v, case: Case, soft_cap=None, **sizes: Any) -> Any:
    """Vaswani et al., 2017, eq. 1; with a soft cap: Gemma Team, 2024, section 2."""
    return pattern(xp, q, k, v, case, np.ones((1, case.T, case.S)), soft_cap)


def window(xp: Any, q, k, v, case: Case, left, right=0, dilation=1, sinks=0, soft_cap=None,
           **sizes: Any) -> Any:  # fmt: skip
    """Beltagy et al., 2020, section 3.1; sinks: Xiao et al., 2024, section 3.2."""
    far = case.distance()
    near = (far >= -left * dilation) & (far <= right * dilation) & (far % dilation == 0)
    return pattern(xp, q, k, v, case, near | (np.arange(case.S) < sinks), soft_cap)


def sink_logits(xp: Any, q, k, v, case: Case, left, sink_logits_N) -> Any:
    """A logit of each head that has no value: OpenAI, 2025 (gpt-oss), section 2.2."""
    far = case.distance()
    a = logits(xp, q, k, case)
    seen = case.seen() & (far >= -left) & (far <= 0)
    p = xp.where(seen, xp.exp(xp.where(seen, a, 0.0)), 0.0)
    total = p.sum(axis=-1, keepdims=True) + xp.exp(sink_logits_N)[:, None, None]
    return values(xp, p / total, v, case)


def blocks(xp: Any, q, k, v, case: Case, block, look_back=0) -> Any:
    """Liu et al., 2018, section 4.2.4."""
    own = (np.arange(case.T)[:, None] + case.offset) // block
    back = own - np.arange(case.S) // block
    return pattern(xp, q, k, v, case, (back >= 0) & (back <= look_back))


def longformer(xp: Any, q, k, v, case: Case, window, is_global_BS, global_q_BTNH, global_k_BSKH,
               global_v_BSKH, **room: Any) -> Any:  # fmt: skip
    """Beltagy et al., 2020, section 3.1: global rows have projections of their own."""
    is_global = np.asarray(is_global_BS)
    near = (abs(case.distance()) <= window // 2) | is_global[:, None, None, :]
    weights = softmax(xp, logits(xp, q, k, case), (case.seen() & near) * 1.0)
    out = values(xp, weights, v, case)
    own = softmax(xp, logits(xp, global_q_BTNH, global_k_BSKH, case), case.seen() * 1.0)
    own_out = values(xp, own, global_v_BSKH, case)
    place_T = np.arange(case.T) + case.offset
    rows_BT = is_global[:, np.minimum(place_T, case.S - 1)] & (place_T < case.S)
    return xp.where(rows_BT[:, :, None, None], own_out, out)


def bigbird(xp: Any, q, k, v, case: Case, block, random_NIR) -> Any:
    """Zaheer et al., 2020, appendix D: a block that is drawn again counts again.

    Causal, which the paper has not, only the first block is global.
    """
    n = -(-case.S // block)
    row, column = np.arange(n)[:, None], np.arange(n)
    ends = [0] if case.causal else [0, n - 1]
    named = (abs(row - column) <= 1) | np.isin(column, ends)
    named = np.broadcast_to(named * 1.0, (case.N, n, n)).copy()
    for head, i, drawn in np.ndindex(*random_NIR.shape):
        if random_NIR[head, i, drawn] >= 0:
            named[head, 1 + i, int(random_NIR[head, i, drawn])] += 1
    named[:, ends] = 1
    q_block, k_block = (np.arange(case.T) + case.offset) // block, np.arange(case.S) // block
    return pattern(xp, q, k, v, case, named[:, q_block][:, :, k_block])


def linformer(xp: Any, q, k, v, case: Case, keys_NLC, values_NLC) -> Any:
    """Wang et al., 2020, eq. 7."""
    seen = case.keys_seen()[:, :, None, None]
    mix = "bsnh,nsc->bcnh"
    k, v = (all_heads(xp, xp.where(seen, x, 0.0), case) for x in (k, v))
    k = xp.einsum(mix, k, keys_NLC[:, : case.S])
    v = xp.einsum(mix, v, values_NLC[:, : case.S])
    a = case.H**-0.5 * xp.einsum("btnh,bcnh->bntc", q, k)
    return xp.einsum("bntc,bcnh->btnh", softmax(xp, a, np.ones(a.shape)), v)


def performer(xp: Any, q, k, v, case: Case, features_MH, **sizes: Any) -> Any:
    """Choromanski et al., 2021, lemma 1 and eq. 4."""

    def phi(x):
        x = x * case.H**-0.25
        half = (x**2).sum(axis=-1, keepdims=True) / 2
        return xp.exp(xp.einsum("bsnh,mh->bsnm", x, features_MH) - half)

    p = xp.einsum("btnm,bsnm->bnts", phi(q), phi(all_heads(xp, k, case)))
    return values(xp, normalised(xp, p * case.seen()), v, case)


def linear(xp: Any, q, k, v, case: Case, **sizes: Any) -> Any:
    """Katharopoulos et al., 2020, eq. 4 and 7."""

    def phi(x):
        return xp.where(x > 0, x + 1, xp.exp(xp.where(x > 0, 0.0, x)))

    p = xp.einsum("btnh,bsnh->bnts", phi(q), phi(all_heads(xp, k, case)))
    return values(xp, normalised(xp, p * case.seen()), v, case)


def retention(xp: Any, q, k, v, case: Case, log_decay, **sizes: Any) -> Any:
    """Sun et al., 2023, eq. 5: (Q K^T · D) V, D_ts = gamma^(t - s)."""
    past = np.maximum(-case.distance(), 0)
    p = logits(xp, q, k, case) * xp.exp(past * log_decay[:, None, None])
    return values(xp, p * case.seen(), v, case)


def gated_linear(xp: Any, q, k, v, case: Case, log_decay, **sizes: Any) -> Any:
    """Yang et al., 2024, eq. 3 unrolled: the gates after s up to t stand between the two."""
    gone_BTNH = xp.cumsum(log_decay, axis=1)
    between = gone_BTNH[:, :, None] - gone_BTNH[:, None]
    order = (case.distance() <= 0)[None, :, :, None, None]
    fade_BTSNH = xp.where(order, xp.exp(xp.where(order, between, 0.0)), 0.0)
    p = xp.einsum("btnh,bsnh,btsnh->bnts", q, all_heads(xp, k, case), fade_BTSNH)
    return values(xp, case.H**-0.5 * p * case.seen(), v, case)


def nystrom(xp: Any, q, k, v, case: Case, num_landmarks, iterations) -> Any:
    """Xiong et al., 2021, eq. 10, 13 and 15; means are over what is no padding."""
    if num_landmarks >= max(case.T, case.S):
        return plain(xp, q, k, v, case)
    k, v = (all_heads(xp, x, case) for x in (k, v))

    def landmarks(x, seen_BT):
        length, number = x.shape[1], min(num_landmarks, x.shape[1])
        size, longer = divmod(length, number)
        sizes = [size] * (number - longer) + [size + 1] * longer
        edges = np.cumsum([0, *sizes])
        means, real = [], []
        for begin, end in itertools.pairwise(edges):
            w = seen_BT[:, begin:end, None, None]
            means.append((x[:, begin:end] * w).sum(axis=1) / np.maximum(w.sum(axis=1), 1))
            real.append(seen_BT[:, begin:end].any(axis=1))
        return xp.stack(means, axis=1), np.stack(real, axis=1)

    def weights(q, k, seen):
        a = case.H**-0.5 * xp.einsum("btnh,bsnh->bnts", q, k)
        return softmax(xp, a, np.broadcast_to(seen, a.shape) * 1.0)

    keys = case.keys_seen()
    q_mean, q_real = landmarks(q, np.ones((case.B, case.T), bool))
    k_mean, k_real = landmarks(k, keys)
    middle = weights(q_mean, k_mean, q_real[:, None, :, None] & k_real[:, None, None])
    columns = middle.sum(axis=-2).max(axis=-1)[..., None, None]
    z, one = middle.swapaxes(-1, -2) / xp.where(columns == 0, 1.0, columns), np.eye(q_mean.shape[1])
    for _ in range(iterations):
        az = middle @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    left = weights(q, k_mean, k_real[:, None, None])
    right = weights(q_mean, k, keys[:, None, None])
    return xp.einsum("bnts,bsnh->btnh", left @ z @ right, v)


def memory(xp: Any, q, k, v, case: Case, top_k) -> Any:
    """Wu et al., 2022, section 3.1: softmax over the top_k best keys, which are constants."""
    if xp is not np:
        import jax

        k, v = jax.lax.stop_gradient((k, v))
    a = logits(xp, q, k, case)
    best = np.minimum(top_k, case.S)
    shown = xp.where(case.seen(), a, -1e30)
    least = xp.sort(shown, axis=-1)[..., case.S - best][..., None]
    return values(xp, softmax(xp, a, (shown >= least) * (case.seen() * 1.0)), v, case)


def chunked_cross(xp: Any, q, k_BLSKH, v_BLSKH, case: Case, chunk, **sizes: Any) -> Any:
    """Borgeaud et al., 2022, section 2.4: from its last token on a chunk's neighbours are read."""
    of_query_T = (np.arange(case.T) + case.offset + 1) // chunk - 1
    reads = (of_query_T >= 0)[:, None]
    k, v = (
        xp.repeat(x[:, np.maximum(of_query_T, 0)], case.N // case.K, axis=3)
        for x in (k_BLSKH, v_BLSKH)
    )
    a = case.H**-0.5 * xp.einsum("btnh,btsnh->bnts", q, k)
    weights = softmax(xp, a, np.broadcast_to(case.seen() & reads, a.shape) * 1.0)
    return xp.einsum("bnts,btsnh->btnh", weights, v)


def relative(xp: Any, q, k, v, case: Case, w_distance_DNH, content_bias_NH, distance_bias_NH,
             also=None, segments=None) -> Any:  # fmt: skip
    """Dai et al., 2019, section 3.3 and appendix B; `also`: where else the mask must be true."""
    D = w_distance_DNH.shape[0]
    frequency = 1 / 10000 ** (np.arange(0, D, 2) / D)
    angle = -case.distance()[..., None] * frequency
    waves_TSD = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    r_TSNH = xp.einsum("tsd,dnh->tsnh", waves_TSD, w_distance_DNH)
    a = logits(xp, q + content_bias_NH, k, case)
    a = a + case.H**-0.5 * xp.einsum("btnh,tsnh->bnts", q + distance_bias_NH, r_TSNH)
    a = a + (0.0 if segments is None else segments(q))
    seen = case.seen() if also is None else case.seen() & also
    return values(xp, softmax(xp, a, seen * 1.0), v, case)


def two_streams(xp: Any, q, k, v, case: Case, g_BTNH, segment_bias_NH, segment_2NH, order_S,
                q_types_BT, k_types_BS, **own: Any) -> Any:  # fmt: skip
    """Yang et al., 2019, section 2.3 and appendix A.1, and section 2.5 for segments.

    The sum of both streams; tokens see those that are not after them in the drawn order, and the
    second stream's queries do not see their own token.
    """
    same_B1TS = (q_types_BT[:, :, None] == k_types_BS[:, None])[:, None]

    def segments(q):
        is_same, is_other = case.H**-0.5 * xp.einsum("btnh,enh->ebnt", q + segment_bias_NH,
                                                     segment_2NH)[..., None]  # fmt: skip
        return xp.where(same_B1TS, is_same, is_other)

    of_query_T1 = order_S[np.arange(case.T) + case.offset][:, None]
    content = relative(xp, q, k, v, case, also=order_S <= of_query_T1, segments=segments, **own)
    query = relative(xp, g_BTNH, k, v, case, also=order_S < of_query_T1, segments=segments, **own)
    return content + query


def differential(xp: Any, q, k, v, case: Case, factor_n) -> Any:
    """Ye et al., 2025, eq. 1; grouped as in the published layer, which repeats keys one by one."""
    a = logits(xp, q, k, case)
    p = softmax(xp, a, np.broadcast_to(case.seen(), a.shape) * 1.0)
    p = p[:, 0::2] - factor_n[:, None, None] * p[:, 1::2]
    v = v.reshape(case.B, case.S, case.K // 2, 2 * case.H)
    v = xp.repeat(v, case.N // case.K, axis=2)
    return xp.einsum("bnts,bsnh->btnh", p, v).reshape(q.shape)


def latent(xp: Any, q, c_BS1R, rope_BS1P, case: Case, w_k_RNH, w_v_RNX, **form: Any) -> Any:
    """DeepSeek-AI, 2024, eq. 9 to 11 and 15 to 18: each head's keys and values from a latent."""
    k = xp.einsum("bsr,rnh->bsnh", c_BS1R[:, :, 0], w_k_RNH)
    v = xp.einsum("bsr,rnh->bsnh", c_BS1R[:, :, 0], w_v_RNX)
    k = xp.concatenate([k, xp.repeat(rope_BS1P, case.N, axis=2)], axis=-1)
    a = case.H**-0.5 * xp.einsum("btnh,bsnh->bnts", q, k)
    weights = softmax(xp, a, np.broadcast_to(case.seen(), a.shape) * 1.0)
    return xp.einsum("bnts,bsnh->btnh", weights, v)
