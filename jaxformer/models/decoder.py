"""Causal language models: GPT, GPT-2, Llama and their kin, by choice of config.

B batch, T time, S cache length, L layers, K key/value heads, H head width, D model width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.models.decoder_sizes import SIZES
from jaxformer.models.head import Classifier, Head
from jaxformer.models.model import (
    Batch,
    Model,
    Output,
    Params,
    checked,
    empty_cache,
    global_tokens,
    positions_of,
)  # fmt: skip
from jaxformer.modules import stack, variants
from jaxformer.modules.attention import Maps
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, RelativePositions, rotary
from jaxformer.modules.norm import Norm

__all__ = ["SIZES", "Config", "make"]


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """A decoder; see TransformerConfig. num_classes > 0 adds a classifier on the last token."""

    num_classes: int = 0

    def __post_init__(self):
        super().__post_init__()
        variants.check(self, causal=True)


def make(config: Config) -> Model:
    """Returns the decoder as pure functions; see Model."""
    variant = variants.parse(config.attention)
    block, embed = Block(config), Embed(config)
    # A post-norm stack ends in a norm already.
    final_norm = None if config.norm_position == "post" else Norm(config)
    relative = RelativePositions(config, bidirectional=False)
    head, classifier = Head(config), Classifier(config.num_classes, config.init_std)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 6)
        tokens = jnp.zeros((1, 2), jnp.int32)
        x_BTD = jnp.zeros((1, 2, config.width), jnp.float32)
        turn = rotary(config, jnp.zeros((1, 2), jnp.int32))
        params = {
            "embed": embed.init(keys[0], tokens, tokens)["params"],
            "layers": stack.init(block, keys[1], x_BTD, rotary=turn, mask=ops.masks.causal()),
            "final_norm": final_norm.init(keys[2], x_BTD).get("params", {}) if final_norm else {},
            "relative": relative.init(keys[3]).get("params", {}),
            "head": head.init(keys[4]).get("params", {}),
        }
        if config.num_classes:
            params["classifier"] = classifier.init(keys[5], x_BTD[:, 0])["params"]
        return {name: tree for name, tree in params.items() if tree}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool | Maps = False,
        return_feed_input: bool = False,
    ) -> Output:
        positions_BT, segment_ids = positions_of(batch, cache), batch.get("segment_ids")
        tokens_BT = batch["tokens"]
        keys = (None, None) if key is None else jax.random.split(key)
        mask, index, reach = ops.masks.causal(), None, config.window - 1
        valid_BS = None
        if cache is not None:
            index = cache["index"]
            fresh = jnp.ones_like(tokens_BT) if segment_ids is None else segment_ids
            valid_BS = jax.lax.dynamic_update_slice(cache["valid"], fresh != 0, (0, index))
            mask = ops.masks.causal(offset=index) & ops.masks.explicit(valid_BS[:, None, None, :])
        elif segment_ids is not None:
            mask = mask & ops.masks.segments(segment_ids)
        start = 0 if index is None else index
        if cache is not None and variant is not None and variant.kind.HAS_STATE:
            # What came before is in the state; the mask is about these tokens.
            mask = ops.masks.causal() & ops.masks.segments((fresh != 0).astype(jnp.int32))
        bias = relative.apply({"params": params.get("relative", {})}, start)
        of_kind = {"global": {"mask": mask, "rotary": rotary(config, positions_BT)}}
        if config.window:
            near = mask & ops.masks.window(reach, 0, start)
            of_kind["local"] = {"mask": near, "rotary": rotary(config, positions_BT, "local")}
        x_BTD = embed.apply({"params": params["embed"]}, tokens_BT, positions_BT, key=keys[0])
        out = stack.apply(
            block, params["layers"], x_BTD,
            cache=cache, index=index, key=keys[1], return_hidden=return_hidden,
            return_attention=return_attention, return_feed_input=return_feed_input, of_kind=of_kind,
            segment_ids_BT=segment_ids if config.short_conv else None,
            bias=bias, offset=start, global_BT=global_tokens(config, batch, valid_BS),
        )  # fmt: skip
        hidden = out.x_BTD
        if final_norm is not None:
            hidden = final_norm.apply({"params": params.get("final_norm", {})}, hidden)
        if cache is not None:
            cache = {**out.cache, "valid": valid_BS, "index": index + tokens_BT.shape[1]}
        return Output(
            hidden, cache, out.hidden_states_LBTD, out.attention_LBNTS, out.feed_input_BTD
        )

    def unembed(params: Params, hidden: jax.Array):
        table_VD, bias_V = head.apply({"params": params.get("head", {})})
        hidden = hidden * config.logit_scale if config.logit_scale else hidden
        return hidden, params["embed"]["tokens"] if table_VD is None else table_VD, bias_V

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        """Reads the last real token: the only one that has seen the whole text (GPT-1)."""
        B, T = batch["tokens"].shape
        valid_BT = batch.get("segment_ids", jnp.ones((B, T), jnp.int32)) != 0
        last_B = jnp.max(jnp.where(valid_BT, jnp.arange(T), 0), axis=1)
        pooled_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
        return classifier.apply({"params": params["classifier"]}, pooled_BD)

    def init_cache(batch_size: int, max_length: int) -> dict:
        return empty_cache(config, config.num_layers, batch_size, max_length)

    return Model(config, init, checked(config, apply), unembed, classify, init_cache)
