"""RETRO: a decoder that reads, chunk by chunk, what a search found in a database of text.

Borgeaud et al. (2022), "Improving language models by retrieving from trillions of tokens", section
2. With no neighbours in the batch it is a plain decoder (the paper's RETRO[OFF]).

Shapes: B batch, T time, L chunks of m tokens, P neighbours of a chunk, r tokens of a neighbour,
S = P r, N heads, K key/value heads, H head width, D width, E width of the encoder, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models.head import Head
from jaxformer.models.model import (
    Batch,
    Model,
    Output,
    Params,
    checked,
    empty_cache,
    positions_of,
)  # fmt: skip
from jaxformer.models.retro_cache import remembered, with_retrieval
from jaxformer.modules import retro
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, rotary
from jaxformer.modules.norm import Norm
from jaxformer.modules.retro import ReadChunk, ReadNeighbours, Retrieved

__all__ = ["SIZES", "Config", "make", "with_retrieval"]


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """RETRO; see TransformerConfig, of whose choices it has pre-norm, softmax and RoPE alone.

    chunk: tokens of a chunk (m; it must be data.retrieval_chunk); retrieval_layers: the layers with
    chunked cross-attention, counted from 1 ((): every third from the 6th, as in the paper, or from
    the middle of a shallow model). The neighbours' encoder: encoder_layers, encoder_width (E; 0: D;
    as wide as the decoder, it looks tokens up in the decoder's table), encoder_heads (0: as many of
    the decoder's head width as E holds), encoder_cross_layers: its layers that read the chunk.
    """

    norm: str = "rms_norm"
    norm_bias: bool = False
    bias: bool = False
    positions: str = "rope"
    chunk: int = 64
    retrieval_layers: tuple[int, ...] = ()
    encoder_layers: int = 2
    encoder_width: int = 0
    encoder_heads: int = 0
    encoder_cross_layers: tuple[int, ...] = (1,)

    def __post_init__(self):
        super().__post_init__()
        only = {
            "norm_position": ("pre",), "attention": ("softmax",), "window": (0,),
            "positions": ("rope", "rope_interleaved"), "share_layers": (False,),
            "parallel_residual": (False,), "embedding_size": (0,), "first_attention_norm": (True,),
        }  # fmt: skip
        for name, values in only.items():
            if getattr(self, name) not in values:
                raise UserError(
                    f"model.{name}={getattr(self, name)!r}: model.family=retro has "
                    f"{' or '.join(map(repr, values))} alone; set it so"
                )
        for name in ("chunk", "encoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name, count in (
            ("retrieval_layers", self.num_layers), ("encoder_cross_layers", self.encoder_layers)
        ):  # fmt: skip
            layers = getattr(self, name)
            if list(layers) != sorted(set(layers) & set(range(1, count + 1))):
                raise UserError(
                    f"model.{name}={layers} must rise, from 1 to {count}, the number of layers"
                )
        self.encoder()

    @property
    def looking(self) -> tuple[int, ...]:
        """The layers with cross-attention, from 0."""
        first = min(6, max(1, self.num_layers // 2))
        layers = self.retrieval_layers or range(first, self.num_layers + 1, 3)
        return tuple(layer - 1 for layer in layers)

    def decoder(self) -> TransformerConfig:
        """Returns the config of the decoder's stack."""
        names = (field.name for field in dataclasses.fields(TransformerConfig))
        return TransformerConfig(**{name: getattr(self, name) for name in names})

    def encoder(self) -> TransformerConfig:
        """Returns the config of the neighbours' encoder."""
        width = self.encoder_width or self.width
        heads = self.encoder_heads or max(1, width // self.per_head)
        return dataclasses.replace(
            self.decoder(), num_layers=self.encoder_layers, width=width, num_heads=heads,
            num_kv_heads=0, head_dim=self.per_head, feed_forward=0,
        )  # fmt: skip


# Borgeaud 2022, table 2: the numbers of parameters (embeddings apart) are the paper's names.
_PAPER = dict(
    vocab_size=128000, max_length=2048, activation="gelu_tanh", encoder_width=896, encoder_heads=16,
    encoder_layers=2,
)  # fmt: skip
SIZES = {
    "retro_172m": dict(_PAPER, num_layers=12, width=896, num_heads=16, head_dim=64),
    "retro_425m": dict(_PAPER, num_layers=12, width=1536, num_heads=12, head_dim=128),
    "retro_1_5b": dict(_PAPER, num_layers=24, width=2048, num_heads=16, head_dim=128),
    "retro_7_5b": dict(_PAPER, num_layers=32, width=4096, num_heads=32, head_dim=128),
}


def make(config: Config) -> Model:
    """Returns RETRO as pure functions; see Model. Batches may also hold "neighbours" [B, L, P, r]
    int32, of the L = T // m whole chunks of a row, -1 where there is no token."""
    c, m, encoder_config, stack_config = config, config.chunk, config.encoder(), config.decoder()
    looking, reading = c.looking, tuple(layer - 1 for layer in c.encoder_cross_layers)
    embed, final_norm, head = Embed(c), Norm(c), Head(c)
    encoder_embed, encoder_norm = Embed(encoder_config), Norm(encoder_config)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 7)
        tokens = jnp.zeros((1, 2), jnp.int32)
        x_BTD = jnp.zeros((1, 2, c.width), jnp.float32)
        x_BTE = jnp.zeros((1, 2, encoder_config.width), jnp.float32)
        found = Retrieved(jnp.ones((1, 1, 2), bool), jnp.arange(2), 2, x_BTE[None])
        decoder = retro.init(
            stack_config, ReadNeighbours, keys[1], x_BTD, found, looking,
            rotary=rotary(c, tokens), mask=ops.masks.causal(),
        )  # fmt: skip
        encoder = retro.init(
            encoder_config, ReadChunk, keys[4], x_BTE, x_BTD, reading,
            rotary=rotary(encoder_config, tokens),
        )  # fmt: skip
        encoder["final_norm"] = encoder_norm.init(keys[5], x_BTE).get("params", {})
        if encoder_config.width != c.width:
            encoder["embed"] = encoder_embed.init(keys[3], tokens, tokens)["params"]
        params = {
            "embed": embed.init(keys[0], tokens, tokens)["params"],
            "final_norm": final_norm.init(keys[2], x_BTD).get("params", {}),
            "head": head.init(keys[6]).get("params", {}),
            "encoder": {name: tree for name, tree in encoder.items() if tree},
            **decoder,
        }
        return {name: tree for name, tree in params.items() if tree}

    def encode(params: Params, neighbours_BLPr: jax.Array, states_BTD: jax.Array, key):
        """Returns the neighbours' states [B, L, S, E], given their chunks' (algorithm 1)."""
        B, L, P, r = neighbours_BLPr.shape
        part, keys = params["encoder"], (None, None) if key is None else jax.random.split(key)
        tokens = neighbours_BLPr.reshape(B * L * P, r)
        valid, places = tokens >= 0, jnp.arange(r)[None]
        x = encoder_embed.apply(
            {"params": part.get("embed", params["embed"])},
            jnp.maximum(tokens, 0),
            places,
            key=keys[0],
        )
        chunks = states_BTD[:, : L * m].reshape(B * L, m, c.width)
        out = retro.apply(
            encoder_config, ReadChunk, part, x, lambda *_: chunks, reading, key=keys[1],
            mask=ops.masks.segments(valid.astype(jnp.int32)),
            rotary=rotary(encoder_config, places),
        )  # fmt: skip
        normed = encoder_norm.apply({"params": part.get("final_norm", {})}, out.x_BTD)
        return normed.reshape(B, L, P * r, -1)

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
        return_feed_input: bool = False,
    ) -> Output:
        tokens_BT, segment_ids = batch["tokens"], batch.get("segment_ids")
        found = batch.get("neighbours")
        positions_BT, T = positions_of(batch, cache), tokens_BT.shape[1]
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        kept: dict[str, Any] = {}
        mask, index, source = ops.masks.causal(), None, None
        if cache is not None:
            index = cache["index"]
            fresh = jnp.ones_like(tokens_BT) if segment_ids is None else segment_ids
            valid_BS = jax.lax.dynamic_update_slice(cache["valid"], fresh != 0, (0, index))
            mask = ops.masks.causal(offset=index) & ops.masks.explicit(valid_BS[:, None, None, :])
            if "neighbour_k" in cache:
                source = remembered(config, encode, params, cache, found, T, kept, keys[2])
            elif found is not None:
                raise UserError("neighbours need a cache of models.retro.with_retrieval")
        elif segment_ids is not None:
            mask = mask & ops.masks.segments(segment_ids)
        if cache is None and found is not None and found.shape[1]:
            _check(found, tokens_BT)
            made: list[Retrieved] = []

            def source(number: int, x_BTD: jax.Array) -> Retrieved:
                # The encoder sees the decoder's states before its first cross-attention (sec. 2.4).
                if not made:
                    B, L, P, r = found.shape
                    states = encode(params, found, x_BTD, keys[2])
                    valid_BLS = (found >= 0).reshape(B, L, P * r)
                    made.append(Retrieved(valid_BLS, retro.places_of(P, r), m, states))
                return made[0]

        x_BTD = embed.apply({"params": params["embed"]}, tokens_BT, positions_BT, key=keys[0])
        out = retro.apply(
            stack_config, ReadNeighbours, params, x_BTD, source, looking, cache=cache, key=keys[1],
            index=index, mask=mask, rotary=rotary(c, positions_BT), return_hidden=return_hidden,
            return_attention=return_attention, return_feed_input=return_feed_input,
            offset=0 if index is None else index,
            segment_ids_BT=segment_ids if c.short_conv else None,
        )  # fmt: skip
        hidden = final_norm.apply({"params": params.get("final_norm", {})}, out.x_BTD)
        if cache is not None:
            cache = {**out.cache, **kept, "valid": valid_BS, "index": index + T}
        return Output(
            hidden, cache, out.hidden_states_LBTD, out.attention_LBNTS, out.feed_input_BTD
        )

    def _check(found: jax.Array, tokens_BT: jax.Array) -> None:
        B, T = tokens_BT.shape
        if found.ndim != 4 or found.shape[:2] != (B, T // m):
            raise UserError(
                f"the batch has neighbours {found.shape}, but {T} tokens have {T // m} chunks of "
                f"model.chunk={m}; set model.chunk and data.retrieval_chunk to one number"
            )

    def unembed(params: Params, hidden: jax.Array):
        table_VD, bias_V = head.apply({"params": params.get("head", {})})
        hidden = hidden * c.logit_scale if c.logit_scale else hidden
        return hidden, params["embed"]["tokens"] if table_VD is None else table_VD, bias_V

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        raise UserError("model.family=retro does not classify; use model.family=decoder")

    def init_cache(batch_size: int, max_length: int) -> dict:
        return empty_cache(c, c.num_layers, batch_size, max_length)

    return Model(c, init, checked(c, apply), unembed, classify, init_cache)
