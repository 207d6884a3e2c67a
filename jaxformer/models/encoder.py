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
from jaxformer.models.model import (
    Batch,
    Model,
    Output,
    Params,
    checked,
    global_tokens,
    positions_of,
)  # fmt: skip
from jaxformer.modules import stack, variants
from jaxformer.modules.attention import Maps
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, RelativePositions, rotary
from jaxformer.modules.norm import Norm

POOLING = ("first", "mean")


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """An encoder; the defaults are BERT's (Devlin 2019). See TransformerConfig.

    num_token_types: rows of the token-type table (0: none).
    masked_head: has the head for masked language modelling, with masked_activation and, but for
    ModernBERT, masked_kernel_bias.
    num_classes: > 0 adds a classifier; pooling: what it reads, "first" (the pooler on the first
    token) or "mean" (over real tokens).
    pooler: has BERT's pooler (with pooler_activation: ELECTRA gelu, DistilBERT relu) even without a
    classifier; next_sentence_head reads it: logits of "follows" and "is another" (ALBERT: "in
    order" and "swapped").
    num_tags: > 0 adds a classifier of each token; span_head: one for an answer's start and end;
    discriminator_head: ELECTRA's, a logit of "was replaced" for each token.
    """

    norm_position: str = "post"
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    embed_norm: bool = True
    max_length: int = 512
    num_token_types: int = 0
    masked_head: bool = True
    masked_activation: str = "gelu"
    masked_kernel_bias: bool = True
    num_classes: int = 0
    pooling: str = "first"
    pooler: bool = False
    pooler_activation: str = "tanh"
    next_sentence_head: bool = False
    num_tags: int = 0
    span_head: bool = False
    discriminator_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        variants.check(self, causal=False)
        one_of(self.pooling, POOLING, "model.pooling")
        one_of(self.masked_activation, ops.ACTIVATIONS, "model.masked_activation")
        one_of(self.pooler_activation, ops.ACTIVATIONS, "model.pooler_activation")
        if self.short_conv:
            raise UserError("model.short_conv is causal; an encoder has none: set it to 0")

    @property
    def has_pooler(self) -> bool:
        reads_first = bool(self.num_classes) and self.pooling == "first"
        return self.pooler or self.next_sentence_head or reads_first

    @property
    def linear_heads(self) -> dict[str, int]:
        """The linear heads by name, and how many numbers each gives; see Model.readout."""
        sizes = {
            "classifier": self.num_classes,
            "next_sentence": 2 * self.next_sentence_head,
            "tagger": self.num_tags,
            "span": 2 * self.span_head,
            "discriminator": int(self.discriminator_head),
        }
        return {name: size for name, size in sizes.items() if size}


# Devlin 2019, section 3; Liu 2019, appendix; Lan 2020, table 1 (the checkpoints of version 2 have
# no dropout and GELU by tanh); Beltagy 2020, section 5; Zaheer 2020, appendix E; Sanh 2019; Warner
# 2024, table 4.
_BERT = dict(vocab_size=30522, num_token_types=2)
_ROBERTA = dict(
    vocab_size=50265, num_token_types=1, position_offset=2, norm_epsilon=1e-5, dropout=0.1,
    attention_dropout=0.1,
)  # fmt: skip
_ALBERT = dict(
    vocab_size=30000, num_token_types=2, embedding_size=128, share_layers=True,
    activation="gelu_tanh", masked_activation="gelu_tanh", next_sentence_head=True,
)  # fmt: skip
_MODERNBERT = dict(
    vocab_size=50368, max_length=8192, norm_position="pre", norm_bias=False, norm_epsilon=1e-5,
    first_attention_norm=False, bias=False, gated=True, positions="rope", rope_base=160_000.0,
    rope_local_base=10000.0, attention_pattern=("global", "local", "local"), window=128,
    masked_kernel_bias=False,
)  # fmt: skip
_LONGFORMER = dict(_ROBERTA, max_length=4096, attention="longformer(window=512)")
_BIGBIRD = dict(
    vocab_size=50358, num_token_types=2, max_length=4096, activation="gelu_tanh",
    masked_activation="gelu_tanh", attention="bigbird", dropout=0.1, attention_dropout=0.1,
    pooler=True,
)  # fmt: skip
SIZES = {
    "bert_base": dict(_BERT, num_layers=12, width=768, num_heads=12),
    "bert_large": dict(_BERT, num_layers=24, width=1024, num_heads=16),
    "roberta_base": dict(_ROBERTA, num_layers=12, width=768, num_heads=12),
    "roberta_large": dict(_ROBERTA, num_layers=24, width=1024, num_heads=16),
    "albert_base": dict(_ALBERT, num_layers=12, width=768, num_heads=12),
    "albert_large": dict(_ALBERT, num_layers=24, width=1024, num_heads=16),
    "albert_xlarge": dict(_ALBERT, num_layers=24, width=2048, num_heads=16),
    "albert_xxlarge": dict(_ALBERT, num_layers=12, width=4096, num_heads=64),
    "longformer_base": dict(_LONGFORMER, num_layers=12, width=768, num_heads=12),
    "longformer_large": dict(_LONGFORMER, num_layers=24, width=1024, num_heads=16),
    "bigbird_base": dict(_BIGBIRD, num_layers=12, width=768, num_heads=12),
    "bigbird_large": dict(_BIGBIRD, num_layers=24, width=1024, num_heads=16),
    "distilbert_base": dict(
        vocab_size=30522, num_layers=6, width=768, num_heads=12, dropout=0.1,
        attention_dropout=0.1, pooler_activation="relu",
    ),
    "modernbert_base": dict(
        _MODERNBERT, num_layers=22, width=768, num_heads=12, feed_forward=1152
    ),
    "modernbert_large": dict(
        _MODERNBERT, num_layers=28, width=1024, num_heads=16, feed_forward=2624
    ),
}  # fmt: skip


def make(config: Config) -> Model:
    """Returns the encoder as pure functions; see Model."""
    block, embed = Block(config), Embed(config, config.num_token_types)
    # A post-norm stack ends in a norm already.
    final_norm = None if config.norm_position == "post" else Norm(config)
    relative = RelativePositions(config, bidirectional=True)
    head = Head(config)
    masked_head = MaskedHead(config, config.masked_activation, config.masked_kernel_bias)
    pooler = Pooler(config.init_std, config.pooler_activation)
    # ELECTRA's discriminator has a layer of its own before its linear head.
    before_discriminator = Pooler(config.init_std, config.activation)

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
            params["head"] = head.init(keys[5]).get("params", {})
        if config.has_pooler:
            params["pooler"] = pooler.init(keys[7], x_BTD[:, 0])["params"]
        if config.discriminator_head:
            params["discriminator_dense"] = before_discriminator.init(
                jax.random.fold_in(keys[7], 1), x_BTD
            )["params"]
        for name, size in config.linear_heads.items():
            draw = jax.random.fold_in(keys[6], size)
            params[name] = Classifier(size, config.init_std).init(draw, x_BTD)["params"]
        return {name: tree for name, tree in params.items() if tree}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: None = None,
        return_hidden: bool = False,
        return_attention: bool | Maps = False,
    ) -> Output:
        if cache is not None:
            raise ValueError("an encoder sees both sides of every token and has no cache")
        positions_BT, segment_ids = positions_of(batch), batch.get("segment_ids")
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = embed.apply(
            {"params": params["embed"]}, batch["tokens"], positions_BT,
            batch.get("token_types"), keys[0],
        )  # fmt: skip
        mask = None if segment_ids is None else ops.masks.segments(segment_ids)
        of_kind = {"global": {"mask": mask, "rotary": rotary(config, positions_BT)}}
        if config.window:
            near = ops.masks.window(config.window // 2, config.window // 2)
            near = near if mask is None else mask & near
            of_kind["local"] = {"mask": near, "rotary": rotary(config, positions_BT, "local")}
        out = stack.apply(
            block, params["layers"], x_BTD, key=keys[1], return_hidden=return_hidden,
            return_attention=return_attention, of_kind=of_kind,
            bias=relative.apply({"params": params.get("relative", {})}),
            global_BT=global_tokens(config, batch),
        )  # fmt: skip
        hidden = out.x_BTD
        if final_norm is not None:
            hidden = final_norm.apply({"params": params.get("final_norm", {})}, hidden)
        return Output(hidden, None, out.hidden_states_LBTD, out.attention_LBNTS)

    def unembed(params: Params, hidden: jax.Array):
        if "masked_head" not in params:
            raise UserError(
                "this encoder has no head for masked tokens; train one with model.masked_head=True"
            )
        features, bias_V = masked_head.apply({"params": params["masked_head"]}, hidden)
        table_VD, _ = head.apply({"params": params.get("head", {})})
        return features, params["embed"]["tokens"] if table_VD is None else table_VD, bias_V

    def pool(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        """Reads the first real token through the pooler, or the mean of all real tokens."""
        valid_BT = batch.get("segment_ids", jnp.ones_like(batch["tokens"])) != 0
        if config.pooling == "first":
            first_B = jnp.argmax(valid_BT, axis=1)  # not 0 where padding is on the left
            first_BD = jnp.take_along_axis(hidden_BTD, first_B[:, None, None], axis=1)[:, 0]
            return pooler.apply({"params": params["pooler"]}, first_BD)
        weights_BT1 = valid_BT[..., None].astype(jnp.float32)
        total_BD = jnp.sum(hidden_BTD.astype(jnp.float32) * weights_BT1, axis=1)
        return total_BD / jnp.maximum(weights_BT1.sum(axis=1), 1.0)

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        pooled_BD = pool(params, hidden_BTD, batch)
        return Classifier(config.num_classes).apply({"params": params["classifier"]}, pooled_BD)

    def init_cache(batch_size: int, max_length: int):
        raise UserError("model.family=encoder cannot generate text; use a decoder")

    return Model(config, init, checked(config, apply), unembed, classify, init_cache, pool=pool)
