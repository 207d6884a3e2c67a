"""What a language model saw and what came next, kept on disk, and the search in it.

Khandelwal 2020, "Generalization through memorization: nearest neighbor language models": a key is
what the last feed-forward layer reads, after its norm (section 5, table 5); its value is the token
that followed. N entries, D key width, Q queries, K neighbours, S keys of one block, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.checkpoint.checksums import checksums
from jaxformer.errors import UserError, one_of
from jaxformer.evaluate import likelihood, stored
from jaxformer.evaluate.batching import batches_by_length, pad_rows, padded_length
from jaxformer.models import decoder
from jaxformer.ops import retrieval

DTYPES = ("float16", "float32")
_KEYS = 16384  # that are read and compared at one time


class Datastore(NamedTuple):
    """An opened store: keys_ND and values_N are mapped into memory."""

    keys_ND: np.ndarray
    values_N: np.ndarray
    meta: dict[str, Any]


class Seen(NamedTuple):
    """What a model makes of S tokens: whose window they are in, keys, log-probabilities, tokens."""

    window_S: np.ndarray
    keys_SD: np.ndarray
    log_prob_S: np.ndarray
    target_S: np.ndarray


def build(
    out: str | Path,
    model: Any,
    params: Any,
    tokenizer: Any,
    ids: likelihood.Ids,
    *,
    max_length: int = 0,
    stride: int = 0,
    batch_size: int = 8,
    max_tokens: int = 0,
    dtype: str = "float16",
) -> int:
    """Writes the store of a text; neither it nor its keys need to fit into memory.

    Args:
      out: a new folder.
      model, params, tokenizer: a decoder, with what it reads.
      ids: the text, such as a training split's stream.
      max_length, stride, batch_size: see `likelihood.rolling_loglikelihood`.
      max_tokens: most entries, from windows spread evenly over the text; 0: all.
      dtype: of the keys, "float16" or "float32".

    Returns:
      N.

    Raises:
      UserError: `out` is there, no text, another family, or keys too large for float16.
    """
    one_of(dtype, DTYPES, "--dtype")
    stored.refuse(out)
    windows = cut(model, tokenizer, ids, max_length, stride, max_tokens)
    count, total_D, squares = 0, np.zeros(model.config.width), 0.0
    with stored.creating(out, "datastore") as writer:
        for seen in read(model, params, windows, batch_size):
            with np.errstate(over="ignore"):
                keys_SD = seen.keys_SD.astype(dtype)
            if not np.isfinite(keys_SD).all():
                mend = "take --dtype=float32" if dtype == "float16" else "its weights are damaged"
                raise UserError(f"datastore: the model gives keys that {dtype} lacks; {mend}")
            writer.append("keys", keys_SD)
            writer.append("values", seen.target_S.astype(np.int32))
            count += len(keys_SD)
            total_D += seen.keys_SD.sum(axis=0, dtype=np.float64)
            squares += float(np.square(seen.keys_SD, dtype=np.float64).sum())
        # The mean squared distance of a key from their mean: the scale of temperatures.
        variance = max(squares / count - float(np.square(total_D / count).sum()), 1e-12)
        writer.meta = {**identity(params, tokenizer), "variance": variance}
    return count


def open_datastore(path: str | Path, model: Any, params: Any, tokenizer: Any) -> Datastore:
    """Opens a store for the model that made it.

    Raises:
      UserError: no store, a damaged or empty one, or one of another model or tokenizer.
    """
    of_decoder(model)
    _, arrays, meta = stored.open_folder(path, "datastore", "datastore")
    keys_ND, values_N = (arrays.get(name, np.zeros((0, 0))) for name in ("keys", "values"))
    if not len(keys_ND) or len(keys_ND) != len(values_N):
        raise UserError(f"{path} is empty: it has no keys; make another from a longer text")
    if keys_ND.shape[1] != model.config.width:
        raise UserError(
            f"{path} has keys of width {keys_ND.shape[1]}, but this model's are "
            f"{model.config.width} wide; make one of this model with jaxformer datastore"
        )
    check_identity(path, meta, params, tokenizer, "datastore")
    return Datastore(keys_ND, values_N, meta)


def search(store: Datastore, q_QD: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest entries of each query, exactly: (squared distances_QK, values_QK).

    The store is read from disk block by block, once for all queries.

    Args:
      store: any size below 2^31 entries.
      q_QD: queries.
      neighbours: K; where there are fewer entries the rest is at distance inf.
    """
    distances_QK, index_QK = nearest(store.keys_ND, q_QD, neighbours)
    return distances_QK, store.values_N[index_QK]


def nearest(
    keys_ND: np.ndarray, q_QD: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (squared distances_QK, index_QK) of the nearest keys of each query, exactly.

    Args:
      keys_ND: may be a memory map; it is read block by block.
      q_QD, neighbours: see `search`.
    """
    Q = padded_length(len(q_QD), 1 << 30)  # few shapes: few programs
    queries_QD = jnp.asarray(np.pad(q_QD, ((0, Q - len(q_QD)), (0, 0))))
    S = min(_KEYS, len(keys_ND))
    found = retrieval.none_yet(Q, neighbours)
    for start in range(0, len(keys_ND), S):
        block_SD = np.asarray(keys_ND[start : start + S])
        count = len(block_SD)
        block_SD = np.pad(block_SD, ((0, S - count), (0, 0)))
        found = retrieval.nearer(found, queries_QD, block_SD, start, count)
    distances_QK, index_QK = (np.asarray(x)[: len(q_QD)] for x in found)
    return distances_QK, index_QK


def cut(
    model: Any, tokenizer: Any, ids: likelihood.Ids, max_length: int, stride: int, max_tokens: int
) -> list[likelihood.Window]:
    """Returns the windows of a text as `likelihood.perplexity` reads it, at most so many tokens.

    Raises:
      UserError: a text too short, or what `likelihood.loglikelihoods` raises.
    """
    of_decoder(model)
    first = likelihood.start_id(tokenizer)
    prefix, rest = ([first], ids) if first >= 0 else (ids[:1], ids[1:])
    if len(rest) < 2:
        raise UserError(f"the text has {len(ids)} tokens, too few for keys and values")
    stride = stride or max(1, (max_length or model.config.max_length) // 2)
    max_length, stride = likelihood.checked(model, [(prefix, rest)], max_length, stride)
    windows = list(likelihood.windows_of(0, prefix, rest, max_length, stride))
    if max_tokens and max_tokens < len(rest):
        # Whole windows from all over the text; the first one scores more tokens than the others.
        count = max(1, max_tokens // stride)
        chosen = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
        windows = [windows[i] for i in np.unique(chosen)]
        windows[0] = windows[0]._replace(scored=min(windows[0].scored, stride, max_tokens))
    return [window._replace(pair=number) for number, window in enumerate(windows)]


def read(
    model: Any, params: Any, windows: Sequence[likelihood.Window], batch_size: int
) -> Iterator[Seen]:
    """Yields what the model makes of each batch of windows, whose `pair` is their number."""
    lengths = [len(window.tokens) - 1 for window in windows]
    for length, chosen in batches_by_length(lengths, batch_size, model.config.max_length):
        batch = [windows[i] for i in chosen]
        tokens_BT, segment_ids_BT = pad_rows([w.tokens[:-1] for w in batch], length, batch_size)
        hidden_BTD, keys_BTD = _run(model, params, tokens_BT, segment_ids_BT)
        row_S, at_S, target_S = likelihood.scored_places(batch, length)
        log_prob_S, _ = likelihood.token_scores(model, params, hidden_BTD, at_S, target_S)
        keys_SD = np.asarray(keys_BTD, np.float32).reshape(-1, keys_BTD.shape[-1])[at_S]
        window_S = np.array([window.pair for window in batch])[row_S]
        yield Seen(window_S, keys_SD, log_prob_S, target_S)


@functools.partial(jax.jit, static_argnums=0)
def _run(model, params, tokens_BT, segment_ids_BT):
    batch = {"tokens": tokens_BT, "segment_ids": segment_ids_BT}
    out = model.apply(params, batch, return_feed_input=True)
    return out.hidden_BTD, out.feed_input_BTD


def of_decoder(model: Any) -> None:
    """Raises UserError unless the model can be asked for the input of its last feed-forward."""
    if not isinstance(model.config, decoder.Config):
        raise UserError(
            "a datastore is of a decoder (GPT, Llama and their kin), whose last feed-forward layer "
            "gives the keys; this model is of another family"
        )


def identity(params: Any, tokenizer: Any) -> dict[str, str]:
    """Returns checksums of a model's parameters and of its tokenizer."""
    sums = checksums(jax.tree.map(jnp.asarray, params))
    texts = {"model": json.dumps(sums, sort_keys=True), "tokenizer": tokenizer.to_json()}
    return {
        name: hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24]
        for name, text in texts.items()
    }


def check_identity(
    path: str | Path, meta: dict[str, Any], params: Any, tokenizer: Any, command: str
) -> None:
    """Raises UserError unless this model and this tokenizer made the folder."""
    for name, found in identity(params, tokenizer).items():
        if meta.get(name) != found:
            raise UserError(
                f"{path} was made by another {name}; give the one that made it, or make it again "
                f"with jaxformer {command}"
            )
