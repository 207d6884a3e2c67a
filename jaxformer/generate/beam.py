"""Beam search: the whole search of all rows in one jitted program.

A row keeps W running texts and the W best finished ones. A step looks at the 2 W best continuations
of the running texts (one more than W may end): of those that end, the ones among the W best are
finished, and the W best of the rest run on. Rows do not see each other.

Shapes: B rows, W beams, C = 2 W candidates, M room for new tokens, V vocabulary, E stop ids.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generate import logits
from jaxformer.generate.prefill import prefill

NEVER = -1e9  # the score of a text that is not there
FIXED = ("memory", "source_valid")  # of the cache: the same for all beams of a row, for good


class Search(NamedTuple):
    """What is searched for: static."""

    num_beams: int
    length_penalty: float
    early_stopping: bool


def search(
    model: Any,
    options: Any,
    beams: Search,
    params: Any,
    tokens_BT: np.ndarray,
    valid_BT: np.ndarray,
    stop_ids_E: np.ndarray,
    max_new_tokens: np.int32,
) -> list[list[int]]:
    """Returns the best text of each row, without the stop token that ended it."""
    found = _search(model, options, beams, params, tokens_BT, valid_BT, stop_ids_E, max_new_tokens)
    tokens_BM, length_B = map(np.asarray, found)
    rows = [row[:length].tolist() for row, length in zip(tokens_BM, length_B, strict=True)]
    stops = set(stop_ids_E.tolist())
    return [row[:-1] if row and row[-1] in stops else row for row in rows]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(model, options, beams, params, tokens_BT, valid_BT, stop_ids_E, max_new_tokens):
    B, W, M = tokens_BT.shape[0], beams.num_beams, options.room
    cache, logits_BV, position_B = prefill(model, options, params, tokens_BT, valid_BT)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "tokens": jnp.zeros((B, W, M), jnp.int32),
        # All beams begin alike: only the first of them may be continued.
        "score": jnp.full((B, W), NEVER).at[:, 0].set(0.0),
        "position": jnp.repeat(position_B, W),
        "cache": jax.tree.map(lambda leaf: _repeat_rows(leaf, B, W), cache),
        "finished": jnp.zeros((B, W, M), jnp.int32),
        "finished_score": jnp.full((B, W), NEVER),
        "finished_length": jnp.zeros((B, W), jnp.int32),
        "improves": jnp.ones(B, bool),
    }
    first_BWV = jnp.repeat(logits_BV[:, None], W, axis=1)
    state = _step(options, beams, state, first_BWV, stop_ids_E, max_new_tokens)

    def body(state):
        last_C = jnp.take(state["tokens"], state["step"] - 1, axis=2).reshape(-1)
        batch = {"tokens": last_C[:, None], "positions": state["position"][:, None]}
        out = model.apply(params, batch, cache=state["cache"])
        logits_CV = model.logits(params, out.hidden_BTD[:, -1])
        state = {**state, "cache": out.cache, "position": state["position"] + 1}
        logits_BWV = logits_CV.reshape(B, W, -1)
        return _step(options, beams, state, logits_BWV, stop_ids_E, max_new_tokens)

    state = jax.lax.while_loop(
        lambda state: (state["step"] < max_new_tokens) & jnp.any(state["improves"]), body, state
    )
    best_B = jnp.argmax(state["finished_score"], axis=1)
    return (
        jnp.take_along_axis(state["finished"], best_B[:, None, None], axis=1)[:, 0],
        jnp.take_along_axis(state["finished_length"], best_B[:, None], axis=1)[:, 0],
    )


def _step(options, beams, state, logits_BWV, stop_ids_E, max_new_tokens):
    B, W, V = logits_BWV.shape
    C, step = 2 * W, state["step"]
    logits_CV = logits_BWV.reshape(B * W, V)
    log_probs_CV = jax.nn.log_softmax(logits_CV.astype(jnp.float32), axis=-1)
    tokens_CM = state["tokens"].reshape(B * W, -1)
    log_probs_CV = logits.obey(options.rules, log_probs_CV, tokens_CM, step, stop_ids_E)
    scores_BWV = state["score"][..., None] + log_probs_CV.reshape(B, W, V)
    score_BC, flat_BC = jax.lax.top_k(scores_BWV.reshape(B, W * V), C)
    beam_BC, token_BC = flat_BC // V, (flat_BC % V).astype(jnp.int32)
    tokens_BCM = jnp.take_along_axis(state["tokens"], beam_BC[..., None], axis=1)
    tokens_BCM = jnp.where(
        jnp.arange(tokens_BCM.shape[-1]) == step, token_BC[..., None], tokens_BCM
    )

    length = step + 1
    ends_BC = jnp.any(token_BC[..., None] == stop_ids_E, axis=-1) | (length == max_new_tokens)
    counts_BC = ends_BC & (jnp.arange(C) < W)
    if beams.early_stopping:
        full_B = jnp.all(state["finished_score"] > NEVER / 2, axis=1)
        counts_BC &= ~full_B[:, None]
    counts_BC &= state["improves"][:, None]
    penalty = length.astype(jnp.float32) ** beams.length_penalty
    merged_score = jnp.concatenate(
        [state["finished_score"], jnp.where(counts_BC, score_BC / penalty, NEVER)], axis=1
    )
    best_score_BW, best_BW = jax.lax.top_k(merged_score, W)
    merged_tokens = jnp.concatenate([state["finished"], tokens_BCM], axis=1)
    merged_length = jnp.concatenate(
        [state["finished_length"], jnp.full((B, C), length, jnp.int32)], axis=1
    )

    running_BW, kept_BW = jax.lax.top_k(jnp.where(ends_BC, score_BC + NEVER, score_BC), W)
    source_BW = jnp.take_along_axis(beam_BC, kept_BW, axis=1)
    # The best that may still come, at the length of now (as published code guesses it).
    open_B = jnp.min(best_score_BW, axis=1) < NEVER / 2
    hope_B = (running_BW[:, 0] / penalty > jnp.min(best_score_BW, axis=1)) | open_B
    if beams.early_stopping:
        hope_B = open_B
    cache = {
        name: leaf if name in FIXED else jax.tree.map(lambda x: _reorder(x, source_BW), leaf)
        for name, leaf in state["cache"].items()
    }
    return {
        **state,
        "step": length,
        "tokens": jnp.take_along_axis(tokens_BCM, kept_BW[..., None], axis=1),
        "score": running_BW,
        "cache": cache,
        "finished": jnp.take_along_axis(merged_tokens, best_BW[..., None], axis=1),
        "finished_score": best_score_BW,
        "finished_length": jnp.take_along_axis(merged_length, best_BW, axis=1),
        "improves": state["improves"] & hope_B,
    }


def _repeat_rows(leaf: jax.Array, rows: int, times: int) -> jax.Array:
    """Gives each row's part of a cache leaf to all its beams; a scalar is the same for all."""
    if leaf.ndim == 0:
        return leaf
    by_row = leaf.reshape(rows, -1, *leaf.shape[1:])
    return jnp.repeat(by_row, times, axis=0).reshape(-1, *leaf.shape[1:])


def _reorder(leaf: jax.Array, source_BW: jax.Array) -> jax.Array:
    """Lets beam w of each row go on from beam source_BW[:, w]."""
    if leaf.ndim == 0:
        return leaf
    B, W = source_BW.shape
    from_C = (jnp.arange(B)[:, None] * W + source_BW).reshape(-1)
    by_beam = leaf.reshape(B * W, -1, *leaf.shape[1:])
    return by_beam[from_C].reshape(leaf.shape)
