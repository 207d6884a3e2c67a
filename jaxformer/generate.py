"""Writing text: prefill and the decode loop in one jitted program, streaming, stop tokens.

Prompts of different lengths are left-padded, so that all rows write their next token at one place.
Shapes: B batch, T prompt length after padding, S cache length, M most new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError
from jaxformer.ops import sampling

# Tokens between two looks of the host at the text, when streaming or when a stop is a string.
BLOCK = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """What to write and how to draw it.

    prompts (texts to go on from, one row each); max_new_tokens; temperature (0: always the most
    likely token); top_k (0: off), top_p (1: off; Holtzman 2020), min_p (0: off; Nguyen 2024);
    seed; stop (strings, or token ids, at which a row ends; they are not part of the result).
    """

    prompts: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str | int, ...] = ()

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(
                f"generate.max_new_tokens is {self.max_new_tokens}; it must be at least 1"
            )
        if self.temperature < 0:
            raise UserError(
                f"generate.temperature is {self.temperature}; it must be 0 (greedy) or above"
            )
        if self.top_k < 0:
            raise UserError(f"generate.top_k is {self.top_k}; it must be 0 (off) or above")
        for key in ("top_p", "min_p"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"generate.{key} is {getattr(self, key)}; it must be in [0, 1]")
        if "" in self.stop:
            raise UserError("generate.stop holds an empty string; leave it out")


def generate(
    model: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    config: Config = Config(),
    *,
    key: jax.Array | None = None,
    stream: Callable[[int, str], None] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    eos_ids: Sequence[int] = (),
    bos_id: int = -1,
    num_ids: int = 0,
) -> list[list[int]]:
    """Continues every prompt by up to `config.max_new_tokens` tokens.

    A row draws with keys of its own (the key folded with its row and step), so its tokens do not
    depend on its batch mates. Programs are compiled per bucket of prompt length and of new tokens.

    Args:
      model: a Model with `init_cache`; its `apply` takes "segment_ids" and "positions".
      params: its parameters.
      prompts: token ids, one list per row. An empty one starts from `bos_id`, or else from the
        first of `eos_ids`.
      config: see Config; its `prompts` are not read here.
      key: PRNG key; None makes it from `config.seed`.
      stream: called with (row, new text) as text comes; needs `decode`.
      decode: token ids -> text; needed by `stream` and by stop strings.
      eos_ids: token ids that end a row, beside the ids in `config.stop`.
      bos_id: the token that begins a text; -1 for none.
      num_ids: the tokenizer's vocabulary, where the model's is padded beyond it: the ids from here
        on are never drawn. 0: there is no padding.

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
    prompts = _check(model.config, prompts, config.max_new_tokens, bos_id, eos_ids)
    tokens_BT, valid_BT = _left_pad(prompts)
    room = _round_up(config.max_new_tokens, 64)
    options = _Options(
        cache_length=tokens_BT.shape[1] + room,
        room=room,
        greedy=config.temperature == 0,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        num_ids=num_ids or model.config.vocab_size,
    )
    key = jax.random.key(config.seed) if key is None else key
    temperature = np.float32(config.temperature)
    stop_ids_E = np.asarray(sorted(stop_ids) + [-1] * (-len(stop_ids) % 4 or 4), np.int32)
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


class Detokenizer:
    """Turns a growing list of ids into text that only grows, cut at the first stop string.

    Characters whose bytes are not all there yet are held back, and so is a text's end that may turn
    out to be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self.decode, self.stop = decode, tuple(stop)
        self.text = ""  # what was given out
        self.ids: list[int] = []  # all ids before the stop
        self.stopped = False

    def update(self, ids: list[int], *, last: bool = False) -> str:
        """Takes all ids so far and returns the new text; `last` gives out what is held back."""
        if self.stopped:
            return ""
        self.ids, text = list(ids), self.decode(list(ids))
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            text, self.stopped, last = text[: min(found)], True, True
            while self.ids and len(self.decode(self.ids)) > len(text):
                self.ids.pop()
        if not last:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - self._beginning_of_stop(text)]
        new = text[len(self.text) :]
        self.text += new
        return new

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins, but does not complete, a stop string."""
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        ends = (text[-size:] for size in range(min(longest, len(text)), 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self.stop)), 0)


class _Options(NamedTuple):
    """What a compiled program depends on."""

    cache_length: int
    room: int  # M, the new tokens' buffer
    greedy: bool
    top_k: int
    top_p: float
    min_p: float
    num_ids: int


def _check(config, prompts, max_new_tokens: int, bos_id: int, eos_ids) -> list[list[int]]:
    start = [bos_id] if bos_id >= 0 else list(eos_ids)[:1]
    checked = []
    for row, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt] or start
        if not ids:
            raise UserError(
                f"prompt {row} is empty and the tokenizer has no BOS or EOS token to start from; "
                f"give at least one character"
            )
        outside = [token for token in ids if not 0 <= token < config.vocab_size]
        if outside:
            raise UserError(
                f"prompt {row} holds token {outside[0]}, but the model's vocabulary has "
                f"{config.vocab_size}; was it encoded by another tokenizer?"
            )
        if len(ids) + max_new_tokens > config.max_length:
            raise UserError(
                f"prompt {row} has {len(ids)} tokens, and with {max_new_tokens} new ones they "
                f"exceed model.max_length={config.max_length}; "
                + (
                    f"try --config.generate.max_new_tokens={config.max_length - len(ids)}"
                    if len(ids) < config.max_length
                    else f"shorten the prompt to fewer than {config.max_length}"
                )
            )
        checked.append(ids)
    return checked


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _left_pad(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, T] and valid [B, T] with T a power of 2 or multiple of 128."""
    longest = max(len(prompt) for prompt in prompts)
    length = max(16, 1 << (longest - 1).bit_length()) if longest <= 128 else _round_up(longest, 128)
    tokens_BT = np.zeros((len(prompts), length), np.int32)
    valid_BT = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, length - len(prompt) :] = prompt
        valid_BT[row, length - len(prompt) :] = 1
    return tokens_BT, valid_BT


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
    B = tokens_BT.shape[0]
    positions_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1) - 1, 0)
    out = model.apply(
        params,
        {"tokens": tokens_BT, "segment_ids": valid_BT, "positions": positions_BT},
        cache=model.init_cache(B, options.cache_length),
    )
    state = {
        "step": jnp.zeros((), jnp.int32),
        "tokens": jnp.zeros((B, options.room), jnp.int32),
        "last": tokens_BT[:, -1],
        "count": jnp.zeros(B, jnp.int32),
        "done": jnp.zeros(B, bool),
        "position": positions_BT[:, -1] + 1,
        "cache": out.cache,
    }
    logits_BV = model.logits(params, out.hidden_BTD[:, -1])
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
    padding_V = jnp.arange(logits_BV.shape[-1]) >= options.num_ids
    logits_BV = jnp.where(padding_V, -jnp.inf, logits_BV)
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
