"""Prefill and the decode loop in one jitted program, with streaming and stop tokens.

Prompts of different lengths are left-padded, so that all rows write their next token at one place.
Shapes: B batch, T prompt length after padding, S cache length, M most new tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError
from jaxformer.generate import beam, logits
from jaxformer.generate.config import Config
from jaxformer.generate.detokenize import Detokenizer
from jaxformer.generate.prefill import prefill
from jaxformer.generate.prompts import check, left_pad, round_up
from jaxformer.modules.variants import bound_to_places
from jaxformer.ops import sampling

# Tokens between two looks of the host at the text, when streaming or when a stop is a string.
BLOCK = 16
DEFAULT = Config()


def generate(
    model: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    config: Config = DEFAULT,
    *,
    key: jax.Array | None = None,
    stream: Callable[[int, str], None] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    eos_ids: Sequence[int] = (),
    bos_id: int = -1,
    start_id: int = -1,
    num_ids: int = 0,
    suppress_ids: Sequence[int] = (),
    first_id: int = -1,
) -> list[list[int]]:
    """Continues every prompt, or translates every source, by up to `config.max_new_tokens` tokens.

    A row draws with keys of its own (the key folded with its row and step), so its tokens do not
    depend on its batch mates. Programs are compiled per bucket of prompt length and of new tokens.

    Args:
      model: a Model with `init_cache`; its `apply` takes "segment_ids" and "positions". One with
        `encode` reads the prompts as sources.
      params: its parameters.
      prompts: token ids, one list per row. An empty one starts from `bos_id`, or else from the
        first of `eos_ids`.
      config: see Config; its `prompts` are not read here.
      key: PRNG key; None makes it from `config.seed`.
      stream: called with (row, new text) as text comes; needs `decode`.
      decode: token ids -> text; needed by `stream` and by stop strings.
      eos_ids: token ids that end a row, beside the ids in `config.stop`.
      bos_id: the token that begins a text; -1 for none.
      start_id: the token that a target begins with, where prompts are sources; -1 for the model's
        (`config.start_id`), or else the one that begins a text.
      num_ids: the tokenizer's vocabulary, where the model's is padded beyond it: the ids from here
        on are never drawn. 0: there is no padding.
      suppress_ids: token ids that are never drawn.
      first_id: the first new token of every row, which is not drawn (BART's <s>, which comes after
        its start token); -1: it is drawn too.

    Returns:
      The new token ids of each row, without the stop.

    Raises:
      UserError: an empty prompt without a token to start from, an id outside the vocabulary, or
        more tokens than `model.config.max_length`.
    """
    stop_texts = tuple(stop for stop in config.stop if isinstance(stop, str))
    stop_ids = {*eos_ids, *(stop for stop in config.stop if not isinstance(stop, str))}
    if decode is None and (stream or stop_texts):
        raise ValueError("streaming and stop strings need `decode`, which makes text of ids")
    if not prompts:
        return []
    start = [bos_id] if bos_id >= 0 else list(eos_ids)[:1]
    is_source = model.encode is not None
    prompts = check(model.config, prompts, config.max_new_tokens, start, is_source)
    exact = bound_to_places(model.config)
    if exact and len({len(prompt) for prompt in prompts}) > 1:
        raise UserError(
            f"model.attention={model.config.attention} depends on the place in the row, and "
            f"prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens would be "
            "padded; give one prompt at a time"
        )
    tokens_BT, valid_BT = left_pad(prompts, exact=exact)
    if is_source:
        known = (start_id, getattr(model.config, "start_id", -1), *start)
        start_id = next((token for token in known if token >= 0), -1)
        if start_id < 0:
            raise UserError("a target needs a token to begin with; set model.start_id")
    room = round_up(config.max_new_tokens, 64)
    options = _Options(
        cache_length=room + (1 if is_source else tokens_BT.shape[1]),
        start_id=start_id if is_source else -1,
        room=room,
        greedy=config.temperature == 0,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        rules=logits.Rules(
            num_ids=num_ids or model.config.vocab_size,
            min_new_tokens=config.min_new_tokens,
            no_repeat_ngram=config.no_repeat_ngram,
            suppress_ids=tuple(suppress_ids),
            first_id=first_id,
        ),
    )
    key = jax.random.key(config.seed) if key is None else key
    temperature = np.float32(config.temperature)
    stop_ids_E = np.asarray(sorted(stop_ids) + [-1] * (-len(stop_ids) % 4 or 4), np.int32)
    if config.num_beams > 1:
        search = beam.Search(config.num_beams, config.length_penalty, config.early_stopping)
        found = beam.search(
            model, options, search, _unstack(model, params), tokens_BT, valid_BT, stop_ids_E,
            np.int32(config.max_new_tokens),
        )  # fmt: skip
        return _finish(found, stream, decode)
    in_blocks = stream is not None or bool(stop_texts)
    most = config.max_new_tokens
    until = min(BLOCK, most) if in_blocks else most
    params = _unstack(model, params)
    state = _begin(
        model, options, params, tokens_BT, valid_BT, key, temperature, stop_ids_E, np.int32(until)
    )
    if not in_blocks:
        return _rows(state)

    assert decode is not None  # checked above
    texts = [Detokenizer(decode, stop_texts) for _ in prompts]
    while True:
        rows, done_B = _rows(state), np.array(state["done"])
        finished = until >= most
        for row, (text, ids) in enumerate(zip(texts, rows, strict=True)):
            new = text.update(ids, last=finished or bool(done_B[row]))
            done_B[row] |= text.stopped
            if new and stream is not None:
                stream(row, new)
        if finished or done_B.all():
            return [text.ids for text in texts]
        until = min(until + BLOCK, most)
        state["done"] = jnp.asarray(done_B)
        state = _continue(
            model, options, params, state, key, temperature, stop_ids_E, np.int32(until)
        )


class _Options(NamedTuple):
    """What a compiled program depends on."""

    cache_length: int
    room: int  # M, the new tokens' buffer
    greedy: bool
    top_k: int
    top_p: float
    min_p: float
    start_id: int  # of a target; -1 where the prompt itself is continued
    rules: logits.Rules


def _finish(rows, stream, decode) -> list[list[int]]:
    """Gives out whole texts, which beam search knows only at its end."""
    if stream is not None:
        for row, ids in enumerate(rows):
            stream(row, decode(ids))
    return rows


def _rows(state: dict) -> list[list[int]]:
    tokens_BM, count_B = np.asarray(state["tokens"]), np.asarray(state["count"])
    return [row[:count].tolist() for row, count in zip(tokens_BM, count_B, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _unstack(model, params):
    """The parameters with layers apart, once: sliced in the loop they would be copied each step."""
    unstack = getattr(model, "unstack", None)
    return params if unstack is None else unstack(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(model, options, params, tokens_BT, valid_BT, key, temperature, stop_ids_E, until):
    """Prefill, the first token, and the decode loop up to `until` new tokens."""
    cache, logits_BV, position_B = prefill(model, options, params, tokens_BT, valid_BT)
    B = tokens_BT.shape[0]
    state = {
        "step": jnp.zeros((), jnp.int32),
        "tokens": jnp.zeros((B, options.room), jnp.int32),
        "last": jnp.zeros(B, jnp.int32),
        "count": jnp.zeros(B, jnp.int32),
        "done": jnp.zeros(B, bool),
        "position": position_B,
        "cache": cache,
    }
    state = _draw(options, state, logits_BV, key, temperature, stop_ids_E)
    return _loop(model, options, params, state, key, temperature, stop_ids_E, until)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _continue(model, options, params, state, key, temperature, stop_ids_E, until):
    """The decode loop from where it stood up to `until` new tokens."""
    return _loop(model, options, params, state, key, temperature, stop_ids_E, until)


def _loop(model, options, params, state, key, temperature, stop_ids_E, until):
    def body(state):
        batch = {"tokens": state["last"][:, None], "positions": state["position"][:, None]}
        out = model.apply(params, batch, cache=state["cache"])
        logits_BV = model.logits(params, out.hidden_BTD[:, -1])
        state = {**state, "cache": out.cache, "position": state["position"] + ~state["done"]}
        return _draw(options, state, logits_BV, key, temperature, stop_ids_E)

    def goes_on(state):
        return (state["step"] < until) & ~jnp.all(state["done"])

    return jax.lax.while_loop(goes_on, body, state)


def _draw(options, state, logits_BV, key, temperature, stop_ids_E):
    """Draws the next token of each row; rows that are done keep still."""
    step, done_B = state["step"], state["done"]
    logits_BV = logits.obey(options.rules, logits_BV, state["tokens"], step, stop_ids_E)
    if options.greedy:
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    else:
        keys_B = jax.vmap(
            lambda row: jax.random.fold_in(jax.random.fold_in(key, row), step)
        )(jnp.arange(done_B.shape[0]))  # fmt: skip
        token_B = sampling.sample(
            keys_B, logits_BV, temperature=temperature, top_k=options.top_k, top_p=options.top_p,
            min_p=options.min_p,
        )  # fmt: skip
    done_B = done_B | jnp.any(token_B[:, None] == stop_ids_E, axis=1)
    return {
        **state,
        "step": step + 1,
        "tokens": jax.lax.dynamic_update_slice(state["tokens"], token_B[:, None], (0, step)),
        "last": token_B,
        "count": state["count"] + ~done_B,
        "done": done_B,
    }
