"""Recurrent sequence to sequence with attention: what the Transformer replaced.

B batch, S source time, T target time, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models.model import Batch, Model, Output, Params, checked
from jaxformer.modules.recurrent import (
    Decoder,
    Encoder,
    Keys,
    Source,
    State,
    Table,
    uniform,
)
from jaxformer.modules.recurrent_config import RecurrentConfig


@dataclasses.dataclass(frozen=True)
class Config(RecurrentConfig):
    """An LSTM or GRU encoder-decoder; see RecurrentConfig."""


# Luong 2015, section 4.1 (their best single model feeds its input); Bahdanau 2015, appendix A.2.3
# (RNNsearch; half of its units here in each direction, where theirs had all, and a tanh layer as
# the readout where theirs had maxout). "small" is for a corpus of some 30 000 sentences.
SIZES = {
    "luong2015": dict(
        num_layers=4, width=1000, bidirectional=False, tie_embeddings=False, share_embeddings=False,
        vocab_size=50000, dropout=0.2,
    ),
    "bahdanau2015": dict(
        num_layers=1, width=1000, embedding_size=620, cell="gru", attention="bahdanau",
        tie_embeddings=False, share_embeddings=False, vocab_size=30000,
    ),
    "small": dict(num_layers=2, width=256, dropout=0.2),
}  # fmt: skip


def make(config: Config) -> Model:
    """Returns the encoder-decoder as pure functions; see Model. A row holds one pair of texts."""
    c, E = config, config.embedding_width
    dtype = jnp.dtype(c.compute_dtype)
    embed = Table(c.vocab_size, E, c.init_range)
    source_rows = c.vocab_size if c.share_embeddings else c.source_vocab_size or c.vocab_size
    embed_source = Table(source_rows, E, c.init_range)
    encoder, decoder, make_keys = Encoder(c), Decoder(c), Keys(c)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 6)
        tokens = jnp.zeros((1, 2), jnp.int32)
        x_BTE, valid = jnp.zeros((1, 2, E), dtype), jnp.ones((1, 2), bool)
        params = {
            "embed": embed.init(keys[0], tokens, dtype)["params"],
            "encoder": encoder.init(keys[1], x_BTE, valid)["params"],
        }
        if not c.share_embeddings:
            params["encoder"]["embed"] = embed_source.init(keys[2], tokens, dtype)["params"]
        values, cells = encoder.apply({"params": params["encoder"]}, x_BTE, valid)
        keys_BSA, attention = make_keys.init_with_output(keys[4], values)
        source = Source(keys_BSA, values, valid)
        params["decoder"] = decoder.init(keys[3], x_BTE, _state(c, cells, 1), source)["params"]
        params["decoder"].setdefault("attention", {}).update(attention["params"])
        head = {}
        if not c.tie_embeddings:
            head["table"] = uniform(c.width**-0.5)(keys[5], (c.vocab_size, c.width))
        if c.head_bias:
            head["bias"] = jnp.zeros((c.vocab_size,))
        return {**params, "head": head} if head else params

    def read(params: Params, batch: Batch, key) -> tuple[Source, State]:
        """Returns the source, and the state in which the decoder begins."""
        if "source" not in batch:
            raise UserError(
                'model.family=recurrent translates: its batch needs "source"; for plain text use '
                "model.family=decoder"
            )
        keys = (None, None) if key is None else jax.random.split(key)
        tokens_BS = batch["source"]
        valid_BS = batch.get("source_segment_ids", jnp.ones_like(tokens_BS)) != 0
        of_source = params["embed"] if c.share_embeddings else params["encoder"]["embed"]
        x_BSE = embed_source.apply({"params": of_source}, tokens_BS, dtype)
        x_BSE = ops.dropout(x_BSE, c.dropout, keys[0])
        values_BSH, cells = encoder.apply({"params": params["encoder"]}, x_BSE, valid_BS, keys[1])
        of_attention = params["decoder"]["attention"]
        keys_BSA = make_keys.apply({"params": of_attention}, values_BSH)
        return Source(keys_BSA, values_BSH, valid_BS), _state(c, cells, tokens_BS.shape[0])

    def write(params: Params, batch: Batch, state: State, source: Source, key):
        keys = (None, None) if key is None else jax.random.split(key)
        segment_ids = batch.get("segment_ids")
        x_BTE = embed.apply({"params": params["embed"]}, batch["tokens"], dtype)
        x_BTE = ops.dropout(x_BTE, c.dropout, keys[0])
        return decoder.apply(
            {"params": params["decoder"]}, x_BTE, state, source,
            None if segment_ids is None else segment_ids != 0, keys[1],
        )  # fmt: skip

    def encode(params: Params, batch: Batch, cache: dict) -> dict:
        source, state = read(params, batch, None)
        memory = (source.keys_BSA, source.values_BSH)
        return {**cache, **state, "memory": memory, "source_valid": source.valid_BS}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Output:
        if return_hidden:
            raise UserError("model.family=recurrent has no blocks whose hidden states to return")
        keys = (None, None) if key is None else jax.random.split(key)

        def run(params: Params, batch: Batch) -> Output:
            if cache is None:
                source, state = read(params, batch, keys[0])
            elif "memory" in cache:
                keys_BSA, values_BSH = cache["memory"]
                source = Source(keys_BSA, values_BSH, cache["source_valid"])
                state = {name: cache[name] for name in ("cells", "feed") if name in cache}
            else:
                raise ValueError("the cache holds no source: call model.encode before model.apply")
            hidden_BTD, state, weights_BTS = write(params, batch, state, source, keys[1])
            return Output(hidden_BTD, (None if cache is None else {**cache, **state}, weights_BTS))

        # The one attention that there is, whatever the number of layers.
        out = checked(c, run)(params, batch)
        new_cache, weights_BTS = out.cache
        weights_LBNTS = weights_BTS[None, :, None].astype(jnp.float32) if return_attention else None
        return Output(out.hidden_BTD, new_cache, None, weights_LBNTS)

    def unembed(params: Params, hidden: jax.Array):
        head = params.get("head", {})
        return hidden, head.get("table", params["embed"]["tokens"]), head.get("bias")

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        raise UserError("model.family=recurrent does not classify; use an encoder")

    def init_cache(batch_size: int, max_length: int) -> dict:
        """Holds states and no tokens, so `max_length` does not matter."""
        h_BH = jnp.zeros((batch_size, c.width), dtype)
        cell = (h_BH, h_BH.astype(jnp.float32)) if c.cell == "lstm" else (h_BH,)
        return _state(c, (cell,) * c.num_layers, batch_size)

    return Model(c, init, apply, unembed, classify, init_cache, encode=encode)


def _state(config: Config, cells: tuple, batch_size: int) -> State:
    """Returns the decoder's first state: the encoder's last, and nothing read so far."""
    if config.attention == "luong" and not config.input_feeding:
        return {"cells": cells}
    feed_BH = jnp.zeros((batch_size, config.width), jnp.dtype(config.compute_dtype))
    return {"cells": cells, "feed": feed_BH}
