"""Sequence to sequence: the 2017 Transformer, Marian, BART, T5, by choice of config.

B batch, S source time, T target time, L layers, D model width, V vocabulary.
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
    count_positions,
    empty_cache,
    positions_of,
)  # fmt: skip
from jaxformer.modules import stack, variants
from jaxformer.modules.attention import Maps
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, RelativePositions, rotary
from jaxformer.modules.norm import Norm


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """An encoder and a decoder; the defaults are those of the 2017 Transformer (base).

    num_layers: of the encoder; decoder_layers: of the decoder (0: as many). share_embeddings: one
    token table for source and target (Vaswani 2017, section 3.4); without it the source's has
    source_vocab_size rows (0: vocab_size). start_id: the token that a target begins with (-1: the
    tokenizer's).
    """

    num_layers: int = 6
    width: int = 512
    num_heads: int = 8
    norm_position: str = "post"
    activation: str = "relu"
    positions: str = "sinusoidal_interleaved"
    embed_scale: bool = True
    init: str = "fan_in"
    decoder_layers: int = 0
    share_embeddings: bool = True
    source_vocab_size: int = 0
    start_id: int = -1

    def __post_init__(self):
        super().__post_init__()
        variants.check(self, causal=False)
        if self.short_conv:
            raise UserError("model.short_conv is for decoders alone; set it to 0")
        if self.window:
            raise UserError("model.window: an encoder-decoder attends to everything; set it to 0")
        if self.embedding_size:
            raise UserError("model.embedding_size is for encoders; set it to 0")


_T5 = dict(
    vocab_size=32128, norm_position="pre", norm="rms_norm", norm_bias=False, norm_epsilon=1e-6,
    bias=False, positions="t5", attention_scale=1.0, embed_scale=False, start_id=0,
)  # fmt: skip
_T5_1_1 = dict(_T5, activation="gelu_tanh", gated=True, tie_embeddings=False)
_BART = dict(
    vocab_size=50265, max_length=1024, positions="learned", position_offset=2, activation="gelu",
    embed_norm=True, embed_scale=False, head_bias=True, start_id=2,
)  # fmt: skip


def _t5(layers: int, width: int, heads: int, feed_forward: int, **more: int) -> dict[str, Any]:
    shape = dict(num_layers=layers, width=width, num_heads=heads, feed_forward=feed_forward)
    return {**_T5, **shape, "logit_scale": width**-0.5, **more}


# Vaswani 2017, table 3; Lewis 2020, section 4; Raffel 2020, section 3.7, and the release of T5 1.1,
# whose sizes Flan has too; Tiedemann 2020 (Marian). A vocab_size of 0 is the tokenizer's.
SIZES = {
    "transformer_base": dict(num_layers=6, width=512, num_heads=8, feed_forward=2048, dropout=0.1),
    "transformer_big": dict(num_layers=6, width=1024, num_heads=16, feed_forward=4096, dropout=0.3),
    "bart_base": dict(_BART, num_layers=6, width=768, num_heads=12),
    "bart_large": dict(_BART, num_layers=12, width=1024, num_heads=16),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
    "t5_3b": _t5(24, 1024, 32, 16384, head_dim=128),
    "t5_11b": _t5(24, 1024, 128, 65536, head_dim=128),
    "t5_v1_1_small": dict(
        _T5_1_1, num_layers=8, width=512, num_heads=6, head_dim=64, feed_forward=1024
    ),
    "t5_v1_1_base": dict(_T5_1_1, num_layers=12, width=768, num_heads=12, feed_forward=2048),
    "t5_v1_1_large": dict(_T5_1_1, num_layers=24, width=1024, num_heads=16, feed_forward=2816),
    "t5_v1_1_xl": dict(_T5_1_1, num_layers=24, width=2048, num_heads=32, feed_forward=5120),
    "t5_v1_1_xxl": dict(_T5_1_1, num_layers=24, width=4096, num_heads=64, feed_forward=10240),
    "opus_mt": dict(
        num_layers=6, width=512, num_heads=8, feed_forward=2048, max_length=512,
        activation="silu", positions="sinusoidal", head_bias=True, init="normal", dropout=0.1,
    ),
}  # fmt: skip


def make(config: Config) -> Model:
    """Returns the encoder-decoder as pure functions; see Model."""
    # The source may be long, and is what model.attention is for; what is written is short.
    decoder_config = dataclasses.replace(
        config, num_layers=config.decoder_layers or config.num_layers, attention="softmax"
    )
    blocks = {"encoder": Block(config), "decoder": Block(decoder_config, cross=True)}
    source_size = config.vocab_size if config.share_embeddings else config.source_vocab_size
    source_config = dataclasses.replace(config, vocab_size=source_size or config.vocab_size)
    embeds = {"encoder": Embed(source_config), "decoder": Embed(config)}
    relatives = {
        "encoder": RelativePositions(config, bidirectional=True),
        "decoder": RelativePositions(config, bidirectional=False),
    }
    final_norm = None if config.norm_position == "post" else Norm(config)
    head = Head(config)

    def init(key: jax.Array) -> Params:
        tokens = jnp.zeros((1, 2), jnp.int32)
        x_BTD = jnp.zeros((1, 2, config.width), jnp.float32)
        turn = rotary(config, tokens)
        params: dict = {}
        for side in ("encoder", "decoder"):
            key, *keys = jax.random.split(key, 5)
            embed = embeds[side].init(keys[0], tokens, tokens)["params"]
            if side == "decoder":
                params["embed"] = {"tokens": embed.pop("tokens")}
            elif config.share_embeddings:
                del embed["tokens"]
            cross = {"source_BSD": x_BTD} if side == "decoder" else {}
            parts = {
                "embed": embed,
                "layers": stack.init(blocks[side], keys[1], x_BTD, rotary=turn, **cross),
                "relative": relatives[side].init(keys[2]).get("params", {}),
            }
            if final_norm is not None:
                parts["final_norm"] = final_norm.init(keys[3], x_BTD).get("params", {})
            params[side] = {name: tree for name, tree in parts.items() if tree}
        params["head"] = head.init(key).get("params", {})
        return {name: tree for name, tree in params.items() if tree}

    def run(side: str, params: Params, tokens_BT, positions_BT, keys, **given) -> stack.Stacked:
        """Embeds, and runs one side's stack and final norm."""
        part = params[side]
        table = params["embed"] | part.get("embed", {})
        x_BTD = embeds[side].apply({"params": table}, tokens_BT, positions_BT, key=keys[0])
        start = given.get("index")
        out = stack.apply(
            blocks[side], part["layers"], x_BTD, key=keys[1], rotary=rotary(config, positions_BT),
            bias=relatives[side].apply(
                {"params": part.get("relative", {})}, 0 if start is None else start
            ),
            **given,
        )  # fmt: skip
        if final_norm is None:
            return out
        normed = final_norm.apply({"params": part.get("final_norm", {})}, out.x_BTD)
        return out._replace(x_BTD=normed)

    def read_source(params: Params, batch: Batch, keys) -> jax.Array:
        segments = batch.get("source_segment_ids")
        positions_BS = count_positions(batch["source"], segments)
        mask = None if segments is None else ops.masks.segments(segments)
        return run(
            "encoder", params, batch["source"], positions_BS, keys, mask=mask,
            global_BT=batch.get("global_tokens"),
        ).x_BTD  # fmt: skip

    def encode(params: Params, batch: Batch, cache: dict) -> dict:
        source_BSD = read_source(params, batch, (None, None))
        L = decoder_config.num_layers
        segments = batch.get("source_segment_ids", jnp.ones_like(batch["source"]))
        memory = stack.remember_source(params["decoder"]["layers"], L, source_BSD)
        return {**cache, "memory": memory, "source_valid": segments != 0}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool | Maps = False,
    ) -> Output:
        tokens_BT, segment_ids = batch["tokens"], batch.get("segment_ids")
        positions_BT = positions_of(batch, cache)
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        asked = {"return_hidden": return_hidden, "return_attention": return_attention}
        if cache is None:
            given = {"source_BSD": read_source(params, batch, keys[:2])}
            mask = ops.masks.causal()
            if segment_ids is not None:
                mask = mask & ops.masks.segments(segment_ids)
            if "source_segment_ids" in batch:
                of_target = jnp.ones_like(tokens_BT) if segment_ids is None else segment_ids
                given["source_mask"] = ops.masks.segments(of_target, batch["source_segment_ids"])
            out = run(
                "decoder", params, tokens_BT, positions_BT, keys[2:], mask=mask, **given, **asked
            )
            return Output(out.x_BTD, None, out.hidden_states_LBTD, out.attention_LBNTS)
        index = cache["index"]
        fresh = jnp.ones_like(tokens_BT) if segment_ids is None else segment_ids
        valid_BS = jax.lax.dynamic_update_slice(cache["valid"], fresh != 0, (0, index))
        mask = ops.masks.causal(offset=index) & ops.masks.explicit(valid_BS[:, None, None, :])
        out = run(
            "decoder", params, tokens_BT, positions_BT, keys[2:], mask=mask, cache=cache,
            index=index, source_mask=ops.masks.explicit(cache["source_valid"][:, None, None, :]),
            **asked,
        )  # fmt: skip
        cache = {**out.cache, "valid": valid_BS, "index": index + tokens_BT.shape[1]}
        return Output(out.x_BTD, cache, out.hidden_states_LBTD, out.attention_LBNTS)

    def unembed(params: Params, hidden: jax.Array):
        table_VD, bias_V = head.apply({"params": params.get("head", {})})
        hidden = hidden * config.logit_scale if config.logit_scale else hidden
        return hidden, params["embed"]["tokens"] if table_VD is None else table_VD, bias_V

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        raise UserError("model.family=encoder_decoder does not classify; use an encoder")

    def init_cache(batch_size: int, max_length: int) -> dict:
        return empty_cache(decoder_config, decoder_config.num_layers, batch_size, max_length)

    return Model(config, init, checked(config, apply), unembed, classify, init_cache, encode)
