"""What every family gives: `init` and `apply`, and the readouts that objectives use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.modules import stack, variants
from jaxformer.modules.attention import Maps

Params = Any
Batch = dict[str, jax.Array]


class Output(NamedTuple):
    """What `apply` returns; everything but `hidden_BTD` is None unless asked for."""

    hidden_BTD: jax.Array
    cache: Any = None
    hidden_states_LBTD: jax.Array | None = None
    attention_LBNTS: jax.Array | None = None
    feed_input_BTD: jax.Array | None = None  # of a decoder: what the last feed-forward layer read


class Model(NamedTuple):
    """A model as pure functions of arrays.

    config: the family's frozen Config.
    init: key -> params, a nested dict of float32 arrays.
    apply: (params, batch, *, key=None, cache=None, return_hidden=False, return_attention=False)
      -> Output. The batch holds "tokens" [B, T] int32 and, where wanted, "segment_ids" [B, T]
      (0 is padding; tokens see their own segment only), "positions" [B, T] (by default they
      restart with each segment), "token_types" [B, T] and "global_tokens" [B, T] (1: all see it,
      where attention is Longformer's). `key` turns dropout on. A sequence to sequence model reads
      "source" [B, S] and "source_segment_ids" [B, S] too; its "tokens" are the decoder's input.
      With `cache` the new tokens come after those that it holds. A decoder can also be asked
      with `return_feed_input`.
    unembed: (params, hidden_..D) -> (features_..D, table_VD, bias_V or None), whose product is the
      logits; ops.linear_cross_entropy takes these and never holds all logits.
    classify: (params, hidden_BTD, batch) -> logits_BC float32.
    Of `return_attention`, True is all weights, Maps those of some layers, heads and queries.
    init_cache: (batch_size, max_length) -> an empty cache for `apply`, a tree whose leaves are
      scalars, or have rows (times heads) as their leading axis.
    encode: (params, batch, cache) -> the cache with the batch's "source" in it, for models that
      have one; None for those that have not.
    pool: (params, hidden_BTD, batch) -> pooled_BD, an encoder's reading of the whole row; or None.
    """

    config: Any
    init: Callable[[jax.Array], Params]
    apply: Callable[..., Output]
    unembed: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array, jax.Array | None]]
    classify: Callable[[Params, jax.Array, Batch], jax.Array]
    init_cache: Callable[[int, int], Any]
    encode: Callable[[Params, Batch, Any], Any] | None = None
    pool: Callable[[Params, jax.Array, Batch], jax.Array] | None = None

    def unstack(self, params: Params) -> Params:
        """Returns params with separate layers, for `apply` with a cache: call it before a loop."""
        if "decoder" in params and "layers" in params["decoder"]:
            decoder = params["decoder"]
            L = self.config.decoder_layers or self.config.num_layers
            return {**params, "decoder": {**decoder, "layers": stack.unstack(decoder["layers"], L)}}
        if "layers" not in params:
            return params
        return {**params, "layers": stack.unstack(params["layers"], self.config.num_layers)}

    def readout(self, params: Params, hidden: jax.Array, name: str) -> jax.Array:
        """Returns the float32 logits [..., C] of the linear head `name` on hidden [..., D]."""
        head = params[name]
        return ops.linear(hidden.astype(jnp.float32), head["kernel"], head["bias"])

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Returns the logits [..., V] in float32 of hidden states [..., D]."""
        features, table_VD, bias_V = self.unembed(params, hidden)
        table_VD = table_VD.astype(features.dtype)
        logits = ops.einsum("...D,VD->...V", features, table_VD, out_dtype=jnp.float32)
        logits = logits if bias_V is None else logits + bias_V
        cap = self.config.logit_soft_cap
        return cap * jnp.tanh(logits / cap) if cap else logits


def checked(config: Any, apply: Callable[..., Output]) -> Callable[..., Output]:
    """Returns `apply` with the shapes at its border checked, by names that its batch may hold.

    It costs nothing once compiled. Raises AssertionError, which tells shapes and dtypes.
    """

    @functools.wraps(apply)
    def wrapped(params: Params, batch: Batch, **asked: Any) -> Output:
        tokens_BT = batch["tokens"]
        chex.assert_rank(tokens_BT, 2)
        B, T = tokens_BT.shape
        for name in ("tokens", "segment_ids", "token_types", "global_tokens"):
            if name in batch:
                chex.assert_shape(batch[name], (B, T))
                chex.assert_type(batch[name], int)
        for name in ("source", "source_segment_ids"):
            if name in batch:
                chex.assert_shape(batch[name], (B, batch["source"].shape[1]))
                chex.assert_type(batch[name], int)
        if "positions" in batch:
            chex.assert_shape(batch["positions"], ({1, B}, T))
            chex.assert_type(batch["positions"], int)
        out = apply(params, batch, **asked)
        D, N = config.width, config.num_heads
        L = getattr(config, "decoder_layers", 0) or config.num_layers
        chex.assert_shape(out.hidden_BTD, (B, T, D))
        if out.hidden_states_LBTD is not None:
            chex.assert_shape(out.hidden_states_LBTD, (L, B, T, D))
        if out.attention_LBNTS is not None:
            asks = asked.get("return_attention")
            part = asks if isinstance(asks, Maps) else Maps()
            # A way to attend of its own may pair heads.
            heads = None if getattr(config, "attention", "softmax") != "softmax" else N
            maps = (len(part.layers) or L, B, len(part.heads) or heads, len(part.rows) or T, None)
            chex.assert_shape(out.attention_LBNTS, maps)
        return out

    return wrapped


def positions_of(batch: Batch, cache: dict[str, Any] | None = None) -> jax.Array:
    """Returns the batch's positions [B|1, T]: given, or counted from each segment's first token.

    With a cache they come after the tokens that a row has there, not after its padding.
    """
    if "positions" in batch:
        return batch["positions"]
    positions_BT = count_positions(batch["tokens"], batch.get("segment_ids"))
    if cache is None:
        return positions_BT
    return positions_BT + jnp.sum(cache["valid"], axis=1, keepdims=True, dtype=jnp.int32)


def count_positions(tokens_BT: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
    """Returns 0, 1, 2, ... [1, T], or [B, T] from each segment's first token on.

    So padding on the left changes nothing. It stands at 0 itself: there may be more of it than a
    table of positions has rows, and the NaN of a row beyond would reach those who do not look.
    """
    index_1T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    if segment_ids_BT is None:
        return index_1T
    begins_BT = segment_ids_BT != jnp.pad(segment_ids_BT, ((0, 0), (1, 0)))[:, :-1]
    first_BT = jax.lax.cummax(jnp.where(begins_BT, index_1T, 0), axis=1)
    return jnp.where(segment_ids_BT == 0, 0, index_1T - first_BT)


def global_tokens(config: Any, batch: Batch, valid_BS: jax.Array | None = None) -> jax.Array | None:
    """Returns which tokens [B, T] all may see: the batch's, or each text's first, or None.

    The first ones where `model.attention` has global_tokens="first" (a classifier reads them). With
    `valid_BS`, the real tokens of a cache, it is which of these [B, S].
    """
    if "global_tokens" in batch:
        if valid_BS is not None:
            raise UserError(
                "a cache does not keep which tokens were given as global; set "
                "model.attention=longformer(global_tokens='first')"
            )
        return batch["global_tokens"]
    choice = variants.parse(config.attention)
    if choice is None or choice.get("global_tokens") != "first":
        return None
    if valid_BS is not None:
        return valid_BS & (jnp.cumsum(valid_BS, axis=1) == 1)
    ids_BT = batch.get("segment_ids", jnp.ones_like(batch["tokens"]))
    return (ids_BT != 0) & (count_positions(batch["tokens"], ids_BT) == 0)


def count_parameters(params: Params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def empty_cache(config: Any, num_layers: int, batch_size: int, max_length: int) -> dict[str, Any]:
    """Returns the cache of a stack of blocks that has seen nothing yet; see stack.apply."""
    dtype = jnp.dtype(config.compute_dtype)
    recent: tuple[jax.Array, ...] = ()
    if config.short_conv:
        past = (batch_size, config.short_conv - 1, config.width)
        recent = (jnp.zeros(past, dtype),) * (1 if config.parallel_residual else 2)
    variant, state = variants.parse(config.attention), ()
    heads, k_width, v_width = config.kv_heads, config.per_head, config.per_head
    has_keys = variant is None or not variant.kind.HAS_STATE
    if variant is not None:
        attend = variant.make()
        state = attend.init_state(config, batch_size, max_length)
        heads, k_width, v_width = attend.cached(config)
    matrices = batch_size * heads

    def empty(*shape: int) -> tuple[Any, ...]:
        return tuple(jnp.zeros(shape, dtype) if has_keys else () for _ in range(num_layers))

    return {
        "k": empty(matrices, max_length, k_width),
        "v": empty(matrices, v_width, max_length),
        "state": tuple(jax.tree.map(jnp.array, state) for _ in range(num_layers)),
        "history": tuple(recent for _ in range(num_layers)),
        "valid": jnp.zeros((batch_size, max_length), bool),
        "index": jnp.zeros((), jnp.int32),
    }
