"""Which tokens may come next, whatever chooses among them.

Shapes: B rows (times beams), M room for new tokens, V vocabulary, E stop ids.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rules(NamedTuple):
    """What a compiled program forbids; static."""

    num_ids: int  # ids from here on are the table's padding
    min_new_tokens: int = 0
    no_repeat_ngram: int = 0
    suppress_ids: tuple[int, ...] = ()
    first_id: int = -1  # the first new token, whatever the model says; -1: it is free


def obey(
    rules: Rules,
    logits_BV: jax.Array,
    tokens_BM: jax.Array,
    step: jax.Array,
    stop_ids_E: jax.Array,
) -> jax.Array:
    """Returns the logits with -inf where the rules forbid a token.

    A first token that is given has logit 0: in a search, where logits are log-probabilities, it
    costs nothing.

    Args:
      rules: see Rules.
      logits_BV: of the next token.
      tokens_BM: the new tokens so far; those from `step` on do not count.
      step: int32 scalar, the number of new tokens so far.
      stop_ids_E: ids that end a row; -1 fills up.
    """
    V = logits_BV.shape[-1]
    forbidden_V = jnp.arange(V) >= rules.num_ids
    if rules.suppress_ids:
        forbidden_V = forbidden_V.at[jnp.asarray(rules.suppress_ids)].set(True, mode="drop")
    if rules.min_new_tokens:
        stops_V = jnp.any(jnp.arange(V)[:, None] == stop_ids_E, axis=1)
        forbidden_V = forbidden_V | (stops_V & (step < rules.min_new_tokens))
    logits_BV = jnp.where(forbidden_V, -jnp.inf, logits_BV)
    if rules.no_repeat_ngram:
        logits_BV = jnp.where(
            _repeats(rules.no_repeat_ngram, tokens_BM, step, V), -jnp.inf, logits_BV
        )
    if rules.first_id >= 0:
        only_V = jnp.where(jnp.arange(V) == rules.first_id, 0.0, -jnp.inf)
        logits_BV = jnp.where(step == 0, only_V, logits_BV)
    return logits_BV


def _repeats(n: int, tokens_BM: jax.Array, step: jax.Array, vocab_size: int) -> jax.Array:
    """Returns bool [B, V]: this token would complete n tokens that were there before."""
    B, M = tokens_BM.shape
    start_M = jnp.arange(M)
    known_M = start_M + n - 1 < step  # an earlier run of n tokens begins here
    same_BM = jnp.broadcast_to(known_M, (B, M))
    for offset in range(n - 1):
        current_B = jnp.take(tokens_BM, step - (n - 1) + offset, axis=1, mode="clip")
        earlier_BM = jnp.take(tokens_BM, start_M + offset, axis=1, mode="clip")
        same_BM &= earlier_BM == current_B[:, None]
    same_BM &= step >= n - 1
    last_BM = jnp.take(tokens_BM, start_M + n - 1, axis=1, mode="clip")
    rows_B1 = jnp.arange(B)[:, None]
    banned_BV = jnp.zeros((B, vocab_size), bool)
    return banned_BV.at[rows_B1, last_BM].max(same_BM)
