"""XLNet: a permutation language model in two streams, and the encoder that is left of it.

B batch, T time, P predictions, M memory, L layers, D model width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError, one_of
from jaxformer.models.head import Classifier, Pooler
from jaxformer.models.model import Batch, Model, Output, Params, checked
from jaxformer.modules.relative import Reach, RelativeBlock, RelativeConfig
from jaxformer.modules.relative_stack import (
    empty_cache,
    empty_memory,
    init_stack,
    remember,
    run_stack,
)
from jaxformer.ops.attention.relative import distance_waves
from jaxformer.parallel.rules import gather_width

POOLING = ("last", "first", "mean")

__all__ = ["SIZES", "Config", "empty_memory", "make"]


@dataclasses.dataclass(frozen=True)
class Config(RelativeConfig):
    """XLNet (Yang 2019); see RelativeConfig.

    attention_type: "bi" (a token sees both sides) or "uni" (its past only; with same_length, itself
    and memory_length tokens before it).
    masked_head: has the head that predicts hidden tokens.
    num_classes: > 0 adds a classifier of the row; pooling: what it reads, through a tanh layer:
    the "last" real token (where XLNet's <cls> stands), the "first", or the "mean".
    num_tags: > 0 adds a classifier of each token; span_head: one for an answer's start and end.
    """

    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    attention_type: str = "bi"
    masked_head: bool = True
    num_classes: int = 0
    pooling: str = "last"
    num_tags: int = 0
    span_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        one_of(self.attention_type, ("bi", "uni"), "model.attention_type")
        one_of(self.pooling, POOLING, "model.pooling")
        if self.same_length and self.attention_type == "bi":
            raise UserError("model.same_length is for model.attention_type=uni")

    @property
    def linear_heads(self) -> dict[str, int]:
        """The linear heads by name, and how many numbers each gives; see Model.readout."""
        spans = 2 * self.span_head
        sizes = {"classifier": self.num_classes, "tagger": self.num_tags, "span": spans}
        return {name: size for name, size in sizes.items() if size}


# Yang 2019, appendix A.4.
_XLNET = dict(vocab_size=32000, dropout=0.1, attention_dropout=0.1)
SIZES = {
    "xlnet_base": dict(_XLNET, num_layers=12, width=768, num_heads=12),
    "xlnet_large": dict(_XLNET, num_layers=24, width=1024, num_heads=16),
}


class Ends(nn.Module):
    """The token table, the vector that stands for a hidden token, and the head's own parameters."""

    config: Config

    @nn.compact
    def __call__(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Returns ({"tokens" [V, D], "mask" [D]}, {"bias" [V], perhaps "table" [V, D]} or {})."""
        c, start = self.config, nn.initializers.normal(self.config.init_std)
        embed = {
            "tokens": self.param("tokens", start, (c.vocab_size, c.width)),
            "mask": self.param("mask", start, (c.width,)),
        }
        if not c.masked_head:
            return embed, {}
        head = {"bias": self.param("bias", nn.initializers.zeros, (c.vocab_size,))}
        if not c.tie_embeddings:
            head["table"] = self.param("table", start, (c.vocab_size, c.width))
        return embed, head


def make(config: Config) -> Model:
    """Returns XLNet as pure functions; see Model.

    Beside what all models take, a batch may hold "target_mapping" [B, P, T], one-hot rows that say
    which token each prediction is about, with "perm_mask" [B, T, T], 1 where a token may not see
    another. Then `apply` runs two streams, and its hidden_BTD is the second's, [B, P, D]: what is
    known of the P tokens from what they may see, which is never themselves.

    `empty_memory` gives the memory of a text's segments before, `init_cache` keys and values for
    writing. XLNet writes as the model of one order, left to right: each token sees its past, and a
    second stream, one place ahead, predicts the next. (With attention_type "uni" there is only the
    first stream, and a token's own state predicts the next.)
    """
    c = config
    block = RelativeBlock(c, "post", segments=True)
    pooler = Pooler(c.init_std)
    dtype = jnp.dtype(c.compute_dtype)
    both_sides = c.attention_type == "bi"

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        reach = Reach(distance_waves(1, -1, c.width), 1, 0, None)
        embed, head = Ends(c).init_with_output(keys[0])[0]
        params = {"embed": embed, "layers": init_stack(block, keys[1], reach)}
        params |= {"head": head} if head else {}
        x_BD = jnp.zeros((1, c.width))
        if c.num_classes:
            params["pooler"] = pooler.init(keys[2], x_BD)["params"]
        for name, size in c.linear_heads.items():
            draw = jax.random.fold_in(keys[3], size)
            params[name] = Classifier(size, c.init_std).init(draw, x_BD)["params"]
        return params

    def embed_tokens(params: Params, tokens_BT, key) -> jax.Array:
        table_VD = gather_width(params["embed"]["tokens"])
        return ops.dropout(ops.embed(tokens_BT, table_VD, dtype=dtype), c.dropout, key)

    def embed_queries(params: Params, B: int, P: int, key) -> jax.Array:
        mask_D = params["embed"]["mask"].astype(dtype)
        return ops.dropout(jnp.broadcast_to(mask_D, (B, P, c.width)), c.dropout, key)

    def waves(first: int, last: int, key) -> jax.Array:
        made = distance_waves(first, last, c.width, clamp=c.clamp_length, dtype=dtype)
        return ops.dropout(made, c.dropout, key)

    def masks_of(batch: Batch, memory: dict | None) -> tuple[Any, Any, jax.Array | None]:
        """Returns the masks of the first and of the second stream, and the segments [B, T]."""
        T, M, ids_BT = batch["tokens"].shape[1], 0, batch.get("segment_ids")
        ids_BS = ids_BT
        if memory is not None:
            M = memory["segment_ids"].shape[1]
            ids_BT = jnp.ones_like(batch["tokens"]) if ids_BT is None else ids_BT
            ids_BS = jnp.concatenate([memory["segment_ids"], ids_BT], axis=1)
        parts = [] if both_sides else [ops.masks.causal(offset=M)]
        if c.same_length:
            parts.append(ops.masks.window(c.memory_length, 0, offset=M))
        if ids_BT is not None:
            parts.append(ops.masks.segments(ids_BT, ids_BS))
        base = functools.reduce(operator.and_, parts) if parts else None
        if "perm_mask" not in batch:
            return base, base, ids_BT
        may_BTT = batch["perm_mask"] == 0

        def over(may_BTT: jax.Array) -> Any:
            may_BTS = jnp.pad(may_BTT, ((0, 0), (0, 0), (M, 0)), constant_values=True)
            mask = ops.masks.explicit(may_BTS[:, None])
            return mask if base is None else base & mask

        # In the first stream, which the second may read, every token sees itself.
        return over(may_BTT | jnp.eye(T, dtype=bool)), over(may_BTT), ids_BT

    def types_of(batch: Batch, M: int) -> dict[str, Any]:
        types_BT = batch.get("token_types")
        if types_BT is None:
            return {}
        return {"q_types_BT": types_BT, "k_types_BS": jnp.pad(types_BT, ((0, 0), (M, 0)))}

    def read(params, batch, memory, key, **asked) -> tuple[Any, dict | None]:
        """Runs one stream, or two where predictions are asked for; returns (ran, new memory)."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        (B, T), mapping = batch["tokens"].shape, batch.get("target_mapping")
        M = 0 if memory is None else memory["segment_ids"].shape[1]
        mask, query_mask, ids_BT = masks_of(batch, memory)
        last = -(T - 1) if both_sides else 0
        reach = Reach(
            waves(M + T - 1, last, keys[0]), M + T - 1, M, mask, query_offset=M,
            query_mask=query_mask, target_mapping_BPT=mapping, **types_of(batch, M),
        )  # fmt: skip
        queries = None
        if mapping is not None:
            queries = embed_queries(params, B, mapping.shape[1], keys[2])
        asked["return_inputs"] = asked.get("return_inputs", False) or memory is not None
        ran = run_stack(
            block, params["layers"], embed_tokens(params, batch["tokens"], keys[1]), reach,
            query_BPD=queries, memory=None if memory is None else memory["memory"], key=keys[3],
            **asked,
        )  # fmt: skip
        return ran, None if memory is None else remember(memory, ran.inputs_LBTD, ids_BT)

    def write(params, batch, cache, key, **asked) -> tuple[Any, dict]:
        """Reads what was written last; its second stream, one place ahead, predicts what comes."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        (B, T), S, index = batch["tokens"].shape, cache["valid"].shape[1], cache["index"]
        fresh = batch.get("segment_ids", jnp.ones((B, T), jnp.int32))
        valid_BS = jax.lax.dynamic_update_slice(cache["valid"], fresh != 0, (0, index))
        mask = ops.masks.causal(offset=index) & ops.masks.explicit(valid_BS[:, None, None, :])
        if c.same_length:
            mask = mask & ops.masks.window(c.memory_length, 0, offset=index)
        types = {}
        if "token_types" in batch:
            write_types = jax.lax.dynamic_update_slice
            kept_BS = write_types(cache["token_types"], batch["token_types"], (0, index))
            cache = {**cache, "token_types": kept_BS}
            types = {"q_types_BT": batch["token_types"], "k_types_BS": kept_BS}
        first = S if both_sides else S - 1
        reach = Reach(
            waves(first, 0, keys[0]), first, index, mask, query_offset=index + 1, query_mask=mask,
            **types,
        )  # fmt: skip
        ran = run_stack(
            block, params["layers"], embed_tokens(params, batch["tokens"], keys[1]), reach,
            query_BPD=embed_queries(params, B, T, keys[2]) if both_sides else None,
            cache=cache, key=keys[3], **asked,
        )  # fmt: skip
        assert ran.cache is not None
        return ran, {**ran.cache, "valid": valid_BS, "index": index + T}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Output:
        keys = (None, None) if key is None else jax.random.split(key)
        asked = {"return_inputs": return_hidden, "return_attention": return_attention}
        if cache is not None and "k" in cache:
            ran, cache = write(params, batch, cache, keys[0], **asked)
        else:
            ran, cache = read(params, batch, cache, keys[0], **asked)
        hidden = ran.x_BTD if ran.query_BPD is None else ran.query_BPD
        inputs = ran.inputs_LBTD if return_hidden else None
        return Output(ops.dropout(hidden, c.dropout, keys[1]), cache, inputs, ran.attention_LBNTS)

    single = checked(c, apply)

    def apply_checked(params: Params, batch: Batch, **asked: Any) -> Output:
        # The second stream's states are those of predictions, not of tokens.
        return (apply if "target_mapping" in batch else single)(params, batch, **asked)

    def unembed(params: Params, hidden: jax.Array):
        if "head" not in params:
            raise UserError(
                "this XLNet has no head for hidden tokens; train one with model.masked_head=True"
            )
        head = params["head"]
        return hidden, head.get("table", params["embed"]["tokens"]), head["bias"]

    def pool(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        B, T = batch["tokens"].shape
        valid_BT = batch.get("segment_ids", jnp.ones((B, T), jnp.int32)) != 0
        if c.pooling == "mean":
            weights_BT1 = valid_BT[..., None].astype(jnp.float32)
            total_BD = jnp.sum(hidden_BTD.astype(jnp.float32) * weights_BT1, axis=1)
            pooled_BD = total_BD / jnp.maximum(weights_BT1.sum(axis=1), 1.0)
        else:
            last_B = jnp.max(jnp.where(valid_BT, jnp.arange(T), 0), axis=1)
            at_B = last_B if c.pooling == "last" else jnp.argmax(valid_BT, axis=1)
            pooled_BD = jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]
        return pooler.apply({"params": params["pooler"]}, pooled_BD)

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        pooled_BD = pool(params, hidden_BTD, batch)
        return Classifier(c.num_classes).apply({"params": params["classifier"]}, pooled_BD)

    def init_cache(batch_size: int, max_length: int) -> dict:
        cache = empty_cache(c, batch_size, max_length)
        return {**cache, "token_types": jnp.zeros((batch_size, max_length), jnp.int32)}

    return Model(c, init, apply_checked, unembed, classify, init_cache, pool=pool)
