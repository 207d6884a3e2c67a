"""Log-probabilities of texts under a causal language model, and the perplexities made of them.

Rows are batched by length and padded on the right; neither the padding nor the batch mates change
a result. B batch, T time, C scored tokens of one chunk, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError, reading_text
from jaxformer.evaluate.batching import batches_by_length, pad_rows

Ids = Sequence[int] | np.ndarray

# Elements of the logits that exist at one time: 64 MiB in float32.
_LOGITS = 2**24


def loglikelihoods(
    model: Any,
    params: Any,
    pairs: Sequence[tuple[Ids, Ids]],
    batch_size: int = 32,
    *,
    max_length: int = 0,
    stride: int = 0,
) -> list[tuple[float, bool]]:
    """Returns, of each pair, the log-probability of the continuation after its context.

    What does not fit into `max_length` is cut off the context's left. A continuation longer than
    that is scored in several windows, each token once, with what fits before it as its context.

    Args:
      model: a Model of a causal family.
      params: its parameters.
      pairs: (context ids, continuation ids). A context holds one token at least: begin a text with
        the tokenizer's BOS (see `start_id`).
      batch_size: most rows that run at once.
      max_length: most tokens that the model reads at once; 0: `model.config.max_length`.
      stride: tokens that each further window scores; 0: `max_length`, the cheapest.

    Returns:
      (sum of log-probabilities in nats, whether every token was the most likely one) of each pair,
      in the order of the pairs. An empty continuation gives (0.0, True).

    Raises:
      UserError: a model that is not causal, an empty context, an id outside the vocabulary, or
        `max_length` or `stride` out of range.
    """
    max_length, stride = checked(model, pairs, max_length, stride)
    windows = [
        window
        for index, (context, continuation) in enumerate(pairs)
        for window in windows_of(index, context, continuation, max_length, stride)
    ]
    totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    lengths = [len(window.tokens) - 1 for window in windows]
    for length, chosen in batches_by_length(lengths, batch_size, max_length):
        batch = [windows[i] for i in chosen]
        row_S, logp_S, best_S = _score(model, params, batch, length, batch_size)
        owner_S = np.array([window.pair for window in batch])[row_S]
        np.add.at(totals, owner_S, logp_S.astype(np.float64))
        np.logical_and.at(greedy, owner_S, best_S)
    return [(float(total), bool(all_best)) for total, all_best in zip(totals, greedy, strict=True)]


def rolling_loglikelihood(
    model: Any,
    params: Any,
    ids: Ids,
    prefix: Ids,
    *,
    stride: int = 0,
    max_length: int = 0,
    batch_size: int = 8,
) -> float:
    """Returns the log-probability, in nats, of a long text: each token once, after what fits.

    Args:
      model, params, max_length, batch_size: see `loglikelihoods`.
      ids: the text.
      prefix: what stands before it and is not scored, such as [bos_id]; one token at least.
      stride: tokens that each window but the first scores, so that they see at least
        `max_length` - `stride` tokens before them; 0: half of `max_length`.
    """
    stride = stride or max(1, (max_length or model.config.max_length) // 2)
    pairs = [(prefix, ids)]
    return loglikelihoods(
        model, params, pairs, batch_size, max_length=max_length, stride=stride
    )[0][0]  # fmt: skip


def perplexity(
    model: Any,
    params: Any,
    tokenizer: Any,
    text: str,
    stride: int = 0,
    *,
    max_length: int = 0,
    batch_size: int = 8,
) -> dict[str, float]:
    """Returns the perplexity of a text with a sliding context.

    Only bits per byte and the perplexity of words can be compared across tokenizers. Words are what
    white space separates. The text begins after the tokenizer's BOS, or else EOS; without either
    its first token is a context only, and its words and bytes are not counted.

    Args:
      model, params, stride, max_length, batch_size: see `rolling_loglikelihood`.
      tokenizer: of the model.
      text: any text; names of special tokens in it are mere text.

    Returns:
      {"loss": nats per token, "perplexity" (of tokens), "word_perplexity", "bits_per_byte",
      "tokens", "words", "bytes", "unknown": tokens that are [UNK], of whose text the model knows
      nothing; unless it is 0, compare with no other tokenizer}.

    Raises:
      UserError: a text too short to score, and what `loglikelihoods` raises.
    """
    ids = tokenizer.encode(text)
    prefix = [start_id(tokenizer)]
    if prefix[0] < 0:
        prefix, ids = ids[:1], ids[1:]
        text = text[len(tokenizer.decode(prefix)) :]
    words, num_bytes = len(text.split()), len(text.encode("utf-8", "replace"))
    if not ids or not words:
        raise UserError(
            f"perplexity: the text {text[:20]!r} has no word to score; give a longer one"
        )
    total = rolling_loglikelihood(
        model, params, ids, prefix, stride=stride, max_length=max_length, batch_size=batch_size
    )
    return {
        "loss": -total / len(ids),
        "perplexity": _exp(-total / len(ids)),
        "word_perplexity": _exp(-total / words),
        "bits_per_byte": -total / math.log(2) / num_bytes,
        "tokens": float(len(ids)),
        "words": float(words),
        "bytes": float(num_bytes),
        "unknown": float(sum(i == tokenizer.unk_id for i in ids)),
    }


def read_text(path: str | Path) -> str:
    """Returns a text file's content, as it is; raises UserError unless it is UTF-8 text."""
    with reading_text(path):
        return Path(path).read_bytes().decode("utf-8")


def start_id(tokenizer: Any) -> int:
    """Returns the token that a text begins after: BOS, else EOS, else -1."""
    return tokenizer.bos_id if tokenizer.bos_id >= 0 else tokenizer.eos_id


def prefix_ids(tokenizer: Any, add_bos: bool | None = None) -> list[int]:
    """Returns what stands before a text: BOS or nothing; None: what the tokenizer's file says."""
    if add_bos is None:
        return list(tokenizer.templates[0].prefix) if tokenizer.templates else []
    return [start_id(tokenizer)] if add_bos and start_id(tokenizer) >= 0 else []


def encode_pair(
    tokenizer: Any, context: str, continuation: str, *, add_bos: bool | None = None
) -> tuple[list[int], list[int]]:
    """Returns the ids of a context and of its continuation, as they would be read together.

    White space at the context's end goes to the continuation, as most vocabularies have it at the
    beginning of words. Where a token would span the border, the two are encoded apart.

    Args:
      tokenizer: any Tokenizer.
      context: may be empty; then it is the token of `start_id`.
      continuation: any text.
      add_bos: whether the context begins with BOS; see `prefix_ids`.

    Raises:
      UserError: a token is needed to begin with, and the tokenizer has none.
    """
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    context_ids, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    if whole[: len(context_ids)] == context_ids:
        continuation_ids = whole[len(context_ids) :]
    else:
        continuation_ids = tokenizer.encode(continuation)
    context_ids = prefix_ids(tokenizer, add_bos) + context_ids or [start_id(tokenizer)]
    if context_ids == [-1]:
        raise UserError(
            f"a text begins with {continuation[:20]!r}, but the tokenizer has no BOS or EOS to "
            "begin after; put a context before it"
        )
    return context_ids, continuation_ids


class Window(NamedTuple):
    """What the model reads at once: `tokens` without the last; the last `scored` are scored."""

    pair: int
    tokens: np.ndarray
    scored: int


def windows_of(
    index: int, context: Ids, continuation: Ids, max_length: int, stride: int
) -> Iterator[Window]:
    """Yields a pair's windows: `max_length` tokens each at most, with as much context as fits."""
    first, total = len(context), len(context) + len(continuation)
    ids = np.concatenate([np.asarray(context, np.int32), np.asarray(continuation, np.int32)])
    done = first  # where what is not scored yet begins
    while done < total:
        end = min(total, done + stride if done > first else max(first + stride, max_length + 1))
        yield Window(index, ids[max(0, end - 1 - max_length) : end], end - done)
        done = end


def checked(model: Any, pairs: Sequence, max_length: int, stride: int) -> tuple[int, int]:
    """Returns max_length and stride with their defaults; raises what `loglikelihoods` does."""
    if getattr(model, "encode", None) is not None:
        raise UserError(
            "log-probabilities of texts are those of a causal model; this one is sequence to "
            "sequence: use a decoder"
        )
    jax.eval_shape(lambda: model.init_cache(1, 1))  # an encoder says here that it cannot write
    limit, V = model.config.max_length, model.config.vocab_size
    max_length = max_length or limit
    if not 1 <= max_length <= limit:
        raise UserError(f"max_length is {max_length}; this model reads 1 to {limit} tokens")
    stride = stride or max_length
    if not 1 <= stride <= max_length:
        raise UserError(f"stride is {stride}; it must be 1 to max_length={max_length}")
    for index, (context, continuation) in enumerate(pairs):
        if len(context) == 0:
            raise UserError(
                f"pair {index} has an empty context, and a first token has no probability; begin "
                "it with the tokenizer's BOS or EOS"
            )
        for ids in (context, continuation):
            array = np.asarray(ids)
            if array.size and (array.min() < 0 or array.max() >= V):
                wrong = int(array[(array < 0) | (array >= V)][0])
                raise UserError(
                    f"pair {index} holds token {wrong}, but the model's vocabulary has {V}; was it "
                    "encoded by another tokenizer?"
                )
    return max_length, stride


def _score(
    model: Any, params: Any, batch: list[Window], length: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, of all S scored tokens of a batch: row, log-probability, and whether it was best."""
    tokens_BT, segment_ids_BT = pad_rows([w.tokens[:-1] for w in batch], length, batch_size)
    hidden_BTD = _hidden(model, params, tokens_BT, segment_ids_BT)
    row_S, at_S, target_S = scored_places(batch, length)
    logp_S, best_S = token_scores(model, params, hidden_BTD, at_S, target_S)
    return row_S, logp_S, best_S


def scored_places(
    batch: Sequence[Window], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, of all S scored tokens of a batch: row, place in [B*T] that predicts it, the token.

    Args:
      batch: windows, a row each.
      length: T.
    """
    row_S = np.repeat(np.arange(len(batch)), [window.scored for window in batch])
    # Token t of a window is predicted at place t - 1.
    place_S = np.concatenate(
        [np.arange(len(w.tokens) - 1 - w.scored, len(w.tokens) - 1) for w in batch]
    )
    target_S = np.concatenate([w.tokens[len(w.tokens) - w.scored :] for w in batch])
    return row_S, row_S * length + place_S, target_S


def token_scores(
    model: Any, params: Any, hidden_BTD: jax.Array, at_S: np.ndarray, target_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log-probabilities [S] of tokens, and whether each was the most likely one.

    Args:
      hidden_BTD: what the model returned.
      at_S: places in [B*T]; target_S: the token that each predicts.
    """
    # A fixed number of tokens at a time: logits of all B x T places would often not fit.
    places = hidden_BTD.shape[0] * hidden_BTD.shape[1]
    C = min(max(16, _LOGITS // model.config.vocab_size), 2048, places)
    parts = []
    for start in range(0, len(at_S), C):
        missing = C - len(at_S[start : start + C])
        at_C = np.pad(at_S[start : start + C], (0, missing)).astype(np.int32)
        target_C = np.pad(target_S[start : start + C], (0, missing)).astype(np.int32)
        parts.append(_token_scores(model, params, hidden_BTD, at_C, target_C))
    logp_S, best_S = (np.concatenate(part)[: len(at_S)] for part in zip(*jax.device_get(parts)))
    return logp_S, best_S


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model, params, tokens_BT, segment_ids_BT):
    batch = {"tokens": tokens_BT, "segment_ids": segment_ids_BT}
    return model.apply(params, batch).hidden_BTD


@functools.partial(jax.jit, static_argnums=0)
def _token_scores(model, params, hidden_BTD, at_C, target_C):
    hidden_CD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[at_C]
    logits_CV = model.logits(params, hidden_CD)
    logit_C = jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]
    best_C = jnp.argmax(logits_CV, axis=1) == target_C
    return logit_C - jax.nn.logsumexp(logits_CV, axis=1), best_C


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
