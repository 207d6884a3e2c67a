"""Bidirectional encoders: BERT and its kin, by choice of config.

B batch, T time, D model width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError, one_of
from jaxformer.models.head import Classifier, Head, MaskedHead, Pooler
from jaxformer.models.model import Batch, Model, Output, Params, checked, positions_of
from jaxformer.modules import stack
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, RelativePositions, rotary
from jaxformer.modules.norm import Norm

POOLING = ("first", "mean")


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """An encoder; the defaults are BERT's (Devlin 2019). See TransformerConfig.

    num_token_types: rows of the token-type table (0: none).
    masked_head: has the head for masked language modelling.
    num_classes: > 0 adds a classifier; pooling: what it reads, "first" (BERT's tanh pooler on the
    first token) or "mean" (over real tokens).
    """

    norm_position: str = "post"
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    embed_norm: bool = True
    max_length: int = 512
    num_token_types: int = 0
    masked_head: bool = True
    num_classes: int = 0
    pooling: str = "first"

    def __post_init__(self):
        super().__post_init__()
        one_of(self.pooling, POOLING, "model.pooling")
        if self.short_conv:
            raise UserError("model.short_conv is causal; an encoder has none: set it to 0")


_BERT = dict(vocab_size=30522, num_token_types=2)
SIZES = {
    "bert_base": dict(_BERT, num_layers=12, width=768, num_heads=12),
    "bert_large": dict(_BERT, num_layers=24, width=1024, num_heads=16),
}


def make(config: Config) -> Model:
    """Returns the encoder as pure functions; see Model."""
    block, embed = Block(config), Embed(config, config.num_token_types)
    # A post-norm stack ends in a norm already.
    final_norm = Norm(config) if config.norm_position == "pre" else None
    relative = RelativePositions(config, bidirectional=True)
    head, masked_head = Head(config), MaskedHead(config)
    pooler, classifier = Pooler(config.init_std), Classifier(config.num_classes, config.init_std)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 8)
        tokens = jnp.zeros((1, 2), jnp.int32)
        x_BTD = jnp.zeros((1, 2, config.width), jnp.float32)
        turn = rotary(config, tokens)
        params = {
            "embed": embed.init(keys[0], tokens, tokens)["params"],
            "layers": stack.init(block, keys[1], x_BTD, rotary=turn),
            "relative": relative.init(keys[2]).get("params", {}),
        }
        if final_norm is not None:
            params["final_norm"] = final_norm.init(keys[3], x_BTD).get("params", {})
        if config.masked_head:
            params["masked_head"] = masked_head.init(keys[4], x_BTD)["params"]
            if not config.tie_embeddings:
                params["head"] = head.init(keys[5])["params"]
        if config.num_classes:
            params["classifier"] = classifier.init(keys[6], x_BTD[:, 0])["params"]
            if config.pooling == "first":
                params["pooler"] = pooler.init(keys[7], x_BTD[:, 0])["params"]
        return {name: tree for name, tree in params.items() if tree}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Output:
        if cache is not None:
            raise ValueError("an encoder sees both sides of every token and has no cache")
        positions_BT, segment_ids = positions_of(batch), batch.get("segment_ids")
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = embed.apply(
            {"params": params["embed"]}, batch["tokens"], positions_BT,
            batch.get("token_types"), keys[0],
        )  # fmt: skip
        out = stack.apply(
            block, params["layers"], x_BTD, key=keys[1], return_hidden=return_hidden,
            return_attention=return_attention, rotary=rotary(config, positions_BT),
            mask=None if segment_ids is None else ops.masks.segments(segment_ids),
            bias=relative.apply({"params": params.get("relative", {})}),
        )  # fmt: skip
        hidden = out.x_BTD
        if final_norm is not None:
            hidden = final_norm.apply({"params": params.get("final_norm", {})}, hidden)
        return Output(hidden, None, out.hidden_states_LBTD, out.attention_LBNTS)

    def unembed(params: Params, hidden: jax.Array):
        features, bias_V = masked_head.apply({"params": params["masked_head"]}, hidden)
        table_VD = params["embed"]["tokens"] if config.tie_embeddings else params["head"]["table"]
        return features, table_VD, bias_V

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        if config.pooling == "first":
            pooled_BD = pooler.apply({"params": params["pooler"]}, hidden_BTD[:, 0])
        else:
            valid_BT = batch.get("segment_ids", jnp.ones_like(batch["tokens"])) != 0
            weights_BT1 = valid_BT[..., None].astype(jnp.float32)
            total_BD = jnp.sum(hidden_BTD.astype(jnp.float32) * weights_BT1, axis=1)
            pooled_BD = total_BD / jnp.maximum(weights_BT1.sum(axis=1), 1.0)
        return classifier.apply({"params": params["classifier"]}, pooled_BD)

    def init_cache(batch_size: int, max_length: int):
        raise UserError("model.family=encoder cannot generate text; use a decoder")

    return Model(config, init, checked(config, apply), unembed, classify, init_cache)
