"""Transformer-XL: a decoder that reads segment after segment, with a memory of those before.

B batch, T time, M memory, L layers, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError, one_of
from jaxformer.models.model import Batch, Model, Output, Params, checked
from jaxformer.modules.adaptive import WordHead, Words
from jaxformer.modules.relative import Reach, RelativeBlock, RelativeConfig
from jaxformer.modules.relative_stack import (
    Ran,
    empty_cache,
    empty_memory,
    init_stack,
    remember,
    run_stack,
)
from jaxformer.ops.attention.relative import distance_waves

__all__ = ["SIZES", "Config", "empty_memory", "make"]


@dataclasses.dataclass(frozen=True)
class Config(RelativeConfig):
    """Transformer-XL (Dai 2019); see RelativeConfig.

    norm_position "post" or "pre"; untie_r: every layer has biases of its own (the paper's u and v),
    else all share two; segment_length: texts without a cache are read in segments of so many
    tokens, each with the memory of those before (0: all at once); embedding_size (E; 0: D);
    cutoffs: words from which on the tails of an adaptive softmax begin, in order of frequency (():
    a plain softmax); div_val: how many times narrower each tail's vectors are than those before;
    share_projections: a tail's projection is that of its input, transposed.
    """

    norm_position: str = "post"
    untie_r: bool = False
    segment_length: int = 0
    embedding_size: int = 0
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    share_projections: bool = True

    def __post_init__(self):
        super().__post_init__()
        one_of(self.norm_position, ("post", "pre"), "model.norm_position")
        if self.segment_length and not self.memory_length:
            raise UserError("model.segment_length needs model.memory_length, in tokens")
        ends = (0, *self.cutoffs, self.vocab_size or 1 << 62)
        if list(ends) != sorted(set(ends)):
            raise UserError(
                f"model.cutoffs={self.cutoffs} must rise, above 0 and below "
                f"model.vocab_size={self.vocab_size}"
            )
        if self.div_val < 1 or (self.div_val > 1 and not self.cutoffs):
            raise UserError(
                f"model.div_val={self.div_val} must be 1, or above it with model.cutoffs"
            )

    @property
    def words(self) -> Words:
        """The tables of tokens."""
        return Words(
            self.vocab_size, self.width, self.embedding_size or self.width, self.cutoffs,
            self.div_val, self.init_std, self.compute_dtype,
        )  # fmt: skip


# Dai 2019, section 4.1, on WikiText-103: the base model, and the published checkpoint.
_WT103 = dict(
    vocab_size=267735, cutoffs=(20000, 40000, 200000), untie_r=True, same_length=True, dropout=0.1,
)  # fmt: skip
SIZES = {
    "wt103_base": dict(
        _WT103, num_layers=16, width=410, num_heads=10, head_dim=41, feed_forward=2100,
        memory_length=150, clamp_length=400,
    ),
    "wt103_large": dict(
        _WT103, num_layers=18, width=1024, num_heads=16, head_dim=64, feed_forward=4096, div_val=4,
        memory_length=1600, clamp_length=1000, dropout=0.2,
    ),
}  # fmt: skip


def make(config: Config) -> Model:
    """Returns the decoder as pure functions; see Model.

    `init_cache` keeps keys and values, for writing; `empty_memory` the paper's memory, for reading
    a long text in segments: both go to `apply` as `cache`.
    """
    c = config
    words = c.words
    head = WordHead(words, c.tie_embeddings, c.share_projections)
    block = RelativeBlock(c, c.norm_position, own_biases=c.untie_r)
    dtype = jnp.dtype(c.compute_dtype)

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 4)
        embed = words.init(keys[0], jnp.zeros((1, 2), jnp.int32))["params"]
        params = {"embed": embed}
        if not c.untie_r:
            shape = (2, c.num_heads, c.per_head)
            w, r = nn.initializers.normal(c.init_std)(keys[1], shape)
            params["relative"] = {"r_w_bias": w, "r_r_bias": r}
        reach = Reach(_waves(2), 1, 0, None, shared_biases=params.get("relative"))
        params["layers"] = init_stack(block, keys[2], reach)
        params["head"] = head.init(keys[3], jnp.zeros((1, c.width)), embed)["params"]
        return params

    def _waves(S: int) -> jax.Array:
        return distance_waves(S - 1, 0, c.width, clamp=c.clamp_length, dtype=dtype)

    def reach_of(params: Params, S: int, offset, mask, key) -> Reach:
        """What all layers share, where T queries begin at `offset` of S keys."""
        if c.same_length:
            mask = mask & ops.masks.window(c.memory_length - 1, 0, offset)
        waves_RD = ops.dropout(_waves(S), c.dropout, key)
        return Reach(waves_RD, S - 1, offset, mask, shared_biases=params.get("relative"))

    def run_segment(params, tokens_BT, ids_BT, memory, key, **asked) -> tuple[Ran, dict | None]:
        """Reads one segment, after `memory` if there is any. Returns (ran, new memory)."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        T, M = tokens_BT.shape[1], 0
        ids_BS = ids_BT
        if memory is not None:
            M = memory["segment_ids"].shape[1]
            ids_BT = jnp.ones_like(tokens_BT) if ids_BT is None else ids_BT
            ids_BS = jnp.concatenate([memory["segment_ids"], ids_BT], axis=1)
        mask = ops.masks.causal(offset=M)
        if ids_BT is not None:
            mask = mask & ops.masks.segments(ids_BT, ids_BS)
        x_BTD = ops.dropout(words.apply({"params": params["embed"]}, tokens_BT), c.dropout, keys[0])
        asked["return_inputs"] = asked.get("return_inputs", False) or memory is not None
        ran = run_stack(
            block, params["layers"], x_BTD, reach_of(params, M + T, M, mask, keys[1]),
            memory=None if memory is None else memory["memory"], key=keys[2], **asked,
        )  # fmt: skip
        if memory is not None:
            memory = remember(memory, ran.inputs_LBTD, ids_BT)
        return ran._replace(x_BTD=ops.dropout(ran.x_BTD, c.dropout, keys[3])), memory

    def run_segments(params, tokens_BT, ids_BT, key, return_inputs: bool):
        """Reads a text longer than a segment; returns (hidden_BTD, inputs_LBTD or None)."""
        (B, T), s = tokens_BT.shape, c.segment_length
        back_BT = None
        if ids_BT is None:
            ids_BT = jnp.ones_like(tokens_BT)
        else:
            # A row's first segment begins at its first real token: padding before it goes behind
            # it, or it would move the borders.
            first_B1 = jnp.argmax(ids_BT != 0, axis=1)[:, None]
            front_BT, back_BT = (jnp.arange(T) + first_B1) % T, (jnp.arange(T) - first_B1) % T
            tokens_BT, ids_BT = (jnp.take_along_axis(x, front_BT, 1) for x in (tokens_BT, ids_BT))
        whole = T // s * s

        def cut(x_BT: jax.Array) -> jax.Array:
            return x_BT[:, :whole].reshape(B, -1, s).swapaxes(0, 1)

        def one(memory, each):
            tokens_Bs, ids_Bs, number = each
            of_segment = None if key is None else jax.random.fold_in(key, number)
            ran, memory = run_segment(
                params, tokens_Bs, ids_Bs, memory, of_segment, return_inputs=return_inputs
            )
            return memory, (ran.x_BTD, ran.inputs_LBTD if return_inputs else None)

        each = (cut(tokens_BT), cut(ids_BT), jnp.arange(whole // s))
        memory, (hidden, inputs) = jax.lax.scan(one, empty_memory(c, B), each)
        parts = [hidden.swapaxes(0, 1).reshape(B, whole, c.width)]
        if return_inputs:
            inputs = jnp.moveaxis(inputs, 0, 2).reshape(c.num_layers, B, whole, c.width)
        if whole < T:
            _, (rest, more) = one(memory, (tokens_BT[:, whole:], ids_BT[:, whole:], whole // s))
            parts.append(rest)
            inputs = jnp.concatenate([inputs, more], axis=2) if return_inputs else None
        hidden = jnp.concatenate(parts, axis=1)
        if back_BT is None:
            return hidden, inputs
        hidden = jnp.take_along_axis(hidden, back_BT[..., None], axis=1)
        if return_inputs:
            inputs = jnp.take_along_axis(inputs, back_BT[None, ..., None], axis=2)
        return hidden, inputs

    def decode(params, tokens_BT, ids_BT, cache, key, **asked) -> tuple[Ran, dict]:
        """Writes on: the cache has keys and values."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        index, S = cache["index"], cache["valid"].shape[1]
        fresh = jnp.ones_like(tokens_BT) if ids_BT is None else ids_BT
        valid_BS = jax.lax.dynamic_update_slice(cache["valid"], fresh != 0, (0, index))
        seen_BS = valid_BS
        if c.memory_length and not c.same_length:
            seen_BS = valid_BS & (jnp.arange(S) >= index - c.memory_length)
        mask = ops.masks.causal(offset=index) & ops.masks.explicit(seen_BS[:, None, None, :])
        x_BTD = ops.dropout(words.apply({"params": params["embed"]}, tokens_BT), c.dropout, keys[0])
        ran = run_stack(
            block, params["layers"], x_BTD, reach_of(params, S, index, mask, keys[1]), cache=cache,
            key=keys[2], **asked,
        )  # fmt: skip
        assert ran.cache is not None
        return ran, {**ran.cache, "valid": valid_BS, "index": index + tokens_BT.shape[1]}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Output:
        tokens_BT, ids_BT = batch["tokens"], batch.get("segment_ids")
        if cache is None and 0 < c.segment_length < tokens_BT.shape[1]:
            if return_attention:
                raise UserError(
                    "attention over segments has no one picture; set model.segment_length=0"
                )
            hidden, inputs = run_segments(params, tokens_BT, ids_BT, key, return_hidden)
            return Output(hidden, None, inputs)
        asked = {"return_inputs": return_hidden, "return_attention": return_attention}
        if cache is not None and "k" in cache:
            ran, cache = decode(params, tokens_BT, ids_BT, cache, key, **asked)
        else:
            ran, cache = run_segment(params, tokens_BT, ids_BT, cache, key, **asked)
        inputs = ran.inputs_LBTD if return_hidden else None
        return Output(ran.x_BTD, cache, inputs, ran.attention_LBNTS)

    def unembed(params: Params, hidden: jax.Array):
        return head.apply({"params": params["head"]}, hidden, params["embed"])

    def classify(params: Params, hidden_BTD: jax.Array, batch: Batch) -> jax.Array:
        raise UserError("model.family=transformer_xl does not classify; use model.family=decoder")

    def init_cache(batch_size: int, max_length: int) -> dict:
        return empty_cache(c, batch_size, max_length)

    return Model(c, init, checked(c, apply), unembed, classify, init_cache)
