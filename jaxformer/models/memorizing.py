"""Memorizing Transformer: a decoder in segments, one layer of which searches all those before.

B batch, T time, S cache length, M memory entries, N heads, K key/value heads, D model width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import decoder
from jaxformer.models.model import (
    Batch,
    Model,
    Output,
    Params,
    checked,
    count_positions,
    positions_of,
)  # fmt: skip
from jaxformer.modules import stack
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.embed import Embed, RelativePositions, rotary
from jaxformer.modules.memorizing import ReadingOn, Remembering, Searching, Turn
from jaxformer.modules.norm import Norm
from jaxformer.ops.attention import memory_ring
from jaxformer.ops.attention.memory import span
from jaxformer.ops.masks import Mask

__all__ = ["SIZES", "Config", "empty_memory", "make"]


@dataclasses.dataclass(frozen=True)
class Config(TransformerConfig):
    """A Memorizing Transformer (Wu 2022, section 3); see TransformerConfig.

    segment_length: a token sees those before it in its segment; segments are counted in each
    document from its first token. memory_layer: the layer, from 1, that also searches the segments
    before (0: three quarters up); memory_size: tokens of its document that it searches, the last
    ones, in whole segments (0: no memory); memory_top_k: how many of them a token attends to;
    memory_approximate: whether some may be missed (see ops.attention.memory.search). What is
    searched has no position (section 3.1): in that layer RoPE turns queries and keys for the
    segment alone. num_classes > 0 adds a classifier on the last token.
    """

    max_length: int = 65536
    positions: str = "t5"
    qk_norm: bool = True
    segment_length: int = 512
    memory_layer: int = 0
    memory_size: int = 65536
    memory_top_k: int = 32
    memory_approximate: bool = False
    num_classes: int = 0

    def __post_init__(self):
        super().__post_init__()
        for key in ("segment_length", "memory_top_k"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}; it must be at least 1")
        if self.memory_size < 0 or self.memory_size % self.segment_length:
            raise UserError(
                f"model.memory_size={self.memory_size} must be 0, for none, or a multiple of "
                f"model.segment_length={self.segment_length}"
            )
        if not 0 <= self.memory_layer <= self.num_layers:
            raise UserError(
                f"model.memory_layer={self.memory_layer} must be 1 to "
                f"model.num_layers={self.num_layers}, or 0: three quarters up"
            )
        if self.attention != "softmax" or self.window or self.attention_pattern:
            raise UserError(
                "model.family=memorizing attends by softmax within model.segment_length; leave "
                "model.attention, model.window and model.attention_pattern as they are"
            )
        if self.attention_soft_cap:
            raise UserError(
                "model.family=memorizing has no soft cap; set model.attention_soft_cap=0"
            )

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """ "memory" for the layer that has one, "near" for all others."""
        number = self.memory_layer or max(1, round(0.75 * self.num_layers))
        memory = number if self.memory_size else 0
        return tuple("memory" if i + 1 == memory else "near" for i in range(self.num_layers))


# Wu 2022, section 4.2: 12 layers, of which the 9th has the memory; a vocabulary of 32,000 pieces.
SIZES = {
    "wu2022": dict(
        vocab_size=32000, num_layers=12, width=1024, num_heads=8, head_dim=128, feed_forward=4096,
        memory_layer=9,
    ),
}  # fmt: skip


def make(config: Config) -> Model:
    """Returns the decoder as pure functions; see Model.

    `init_cache` keeps all keys and values, for writing; `empty_memory` those of `memory_size`
    tokens of one layer, for reading a text without end, a segment at a time: both go to `apply` as
    `cache`.
    """
    c = config
    of_decoder = [field.name for field in dataclasses.fields(decoder.Config)]
    plain = decoder.make(decoder.Config(**{name: getattr(c, name) for name in of_decoder}))
    embed, relative = Embed(c), RelativePositions(c, bidirectional=False)
    final_norm = None if c.norm_position == "post" else Norm(c)

    def init(key: jax.Array) -> Params:
        return {**plain.init(key), "memory": {"gate": jnp.zeros((c.num_heads,), jnp.float32)}}

    def run(
        block: Block, params: Params, batch: Batch, positions_BT, near: Mask, far: Mask, *,
        places=None, key=None, start: int | jax.Array = 0, **asked,
    ) -> stack.Stacked:  # fmt: skip
        """Runs the stack: all layers see what is near, one searches what is far.

        `places` are those of queries and keys, where they are not one line.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        gate_N = params["memory"]["gate"]
        turned = rotary(c, positions_BT)
        turn = None
        if turned is not None:
            q_BT, k_BS = places or (positions_BT, positions_BT)
            turn = Turn(
                q_BT, k_BS, turned.frequencies, turned.attention_factor,
                c.positions == "rope_interleaved",
            )  # fmt: skip
        both = Remembering(near, far, gate_N, c.memory_top_k, c.memory_approximate, turn)
        of_kind = {"near": {"mask": near, "rotary": turned}, "memory": {"mask": both}}
        bias = relative.apply({"params": params.get("relative", {})}, start)
        x_BTD = embed.apply({"params": params["embed"]}, batch["tokens"], positions_BT, key=keys[0])
        out = stack.apply(
            block, params["layers"], x_BTD, key=keys[1], bias=bias, of_kind=of_kind, offset=start,
            segment_ids_BT=batch.get("segment_ids") if c.short_conv else None, **asked,
        )  # fmt: skip
        if final_norm is None:
            return out
        normed = final_norm.apply({"params": params.get("final_norm", {})}, out.x_BTD)
        return out._replace(x_BTD=normed)

    def read(params: Params, batch: Batch, ids_BT, **asked) -> tuple[stack.Stacked, None]:
        """Reads whole rows."""
        number_BT, first_BT = number_segments(ids_BT, c.segment_length, c.memory_size)
        # The window spares blocks of queries all keys but those of their surroundings.
        near = ops.masks.causal() & ops.masks.window(c.segment_length - 1)
        near = near & ops.masks.segments(number_BT)
        far = span(first_BT, number_BT, number_BT)
        block = Block(c, variant=Searching)
        return run(block, params, batch, positions_of(batch), near, far, **asked), None

    def write(params, batch, ids_BT, cache, **asked) -> tuple[stack.Stacked, dict]:
        """Writes on: the cache has keys and values of all that a row holds, one document."""
        index, T, s = cache["index"], ids_BT.shape[1], c.segment_length
        valid_BS = jax.lax.dynamic_update_slice(cache["valid"], ids_BT != 0, (0, index))
        place_BS = jnp.maximum(jnp.cumsum(valid_BS, axis=1) - 1, 0)
        number_BS = jnp.where(valid_BS, place_BS // s + 1, 0)
        number_BT, place_BT = (
            jax.lax.dynamic_slice_in_dim(x, index, T, axis=1) for x in (number_BS, place_BS)
        )
        near = ops.masks.causal(offset=index) & ops.masks.segments(number_BT, number_BS)
        far = span(jnp.maximum(number_BT - c.memory_size // s, 1), number_BT, number_BS)
        out = run(
            Block(c, variant=Searching), params, batch, positions_of(batch, cache), near, far,
            places=(place_BT, place_BS), start=index, cache=cache, index=index, **asked,
        )  # fmt: skip
        return out, {**out.cache, "valid": valid_BS, "index": index + T}

    def read_on(params, batch, ids_BT, cache, **asked) -> tuple[stack.Stacked, dict]:
        """Reads one segment, after those whose keys and values are in the ring."""
        T, ring = ids_BT.shape[1], cache["memory"]
        if c.segment_length < T:
            raise UserError(
                "a memory is read on with one segment at a time, of at most "
                f"model.segment_length={c.segment_length} tokens; this one has {T}"
            )
        near = ops.masks.causal() & ops.masks.segments(ids_BT)
        nothing, at = ((),) * c.num_layers, c.layer_kinds.index("memory")
        past = {"k": nothing, "v": nothing, "history": nothing}
        state = (*nothing[:at], {name: ring[name] for name in "kv"}, *nothing[at + 1 :])
        out = run(
            Block(c, variant=ReadingOn), params, batch, positions_of(batch), near,
            memory_ring.seen(ring, ids_BT), cache={**past, "state": state}, **asked,
        )  # fmt: skip
        new = out.cache["state"][at]
        ring = memory_ring.append(ring, new["k"], new["v"], segment_ids_BT=ids_BT)
        return out, {**cache, "memory": ring}

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        cache: dict | None = None,
        return_hidden: bool = False,
        return_attention: bool = False,
    ) -> Output:
        ids_BT = batch.get("segment_ids", jnp.ones_like(batch["tokens"]))
        asked = {"key": key, "return_hidden": return_hidden, "return_attention": return_attention}
        if cache is None:
            out, cache = read(params, batch, ids_BT, **asked)
        elif "memory" in cache:
            out, cache = read_on(params, batch, ids_BT, cache, **asked)
        else:
            out, cache = write(params, batch, ids_BT, cache, **asked)
        return Output(out.x_BTD, cache, out.hidden_states_LBTD, out.attention_LBNTS)

    return Model(c, init, checked(c, apply), plain.unembed, plain.classify, plain.init_cache)


def number_segments(
    ids_BT: jax.Array, segment_length: int, memory_size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (number_BT, first_BT): each token's segment, and the first one that it may search.

    Segments are counted from 1 through the row; each document (its id is not that before) begins
    one, and so does every `segment_length`-th token of it. Padding, of id 0, is in segment 0.
    """
    of_document_BT = count_positions(ids_BT, ids_BT) // segment_length
    begins_BT = (ids_BT != 0) & (
        (ids_BT != _before(ids_BT)) | (of_document_BT != _before(of_document_BT))
    )
    number_BT = jnp.where(ids_BT != 0, jnp.cumsum(begins_BT, axis=1), 0).astype(jnp.int32)
    reach_BT = jnp.minimum(of_document_BT, memory_size // segment_length)
    return number_BT, number_BT - reach_BT


def _before(x_BT: jax.Array) -> jax.Array:
    return jnp.pad(x_BT, ((0, 0), (1, 0)))[:, :-1]


def empty_memory(config: Config, batch_size: int) -> dict:
    """Returns the memory before the first segment, a `cache` for `apply`: {"memory": a ring}.

    Each call of `apply` with it reads one segment, whose document is the one before it if it has
    the same id; see `ops.attention.memory_ring`.
    """
    c = config
    if not c.memory_size:
        raise UserError("the model has no memory; set model.memory_size, in tokens")
    if c.short_conv:
        raise UserError("a memory holds nothing for convolutions; set model.short_conv=0")
    if c.positions.startswith(("learned", "sinusoidal")):
        raise UserError(
            f"model.positions={c.positions} counts from the text's beginning, which a memory does "
            "not know; use t5, alibi, rope or none"
        )
    dtype = jnp.dtype(c.compute_dtype)
    ring = memory_ring.init_memory(batch_size, c.memory_size, c.kv_heads, c.per_head, dtype)
    return {"memory": ring}
