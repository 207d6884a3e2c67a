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
from jaxformer.modules import stack

Params = Any
Batch = dict[str, jax.Array]


class Output(NamedTuple):
    """What `apply` returns; everything but `hidden_BTD` is None unless asked for."""

    hidden_BTD: jax.Array
    cache: Any = None
    hidden_states_LBTD: jax.Array | None = None
    attention_LBNTS: jax.Array | None = None


class Model(NamedTuple):
    """A model as pure functions of arrays.

    config: the family's frozen Config.
    init: key -> params, a nested dict of float32 arrays.
    apply: (params, batch, *, key=None, cache=None, return_hidden=False, return_attention=False)
      -> Output. The batch holds "tokens" [B, T] int32 and, where wanted, "segment_ids" [B, T]
      (0 is padding; tokens see their own segment only), "positions" [B, T] and "token_types"
      [B, T]. `key` turns dropout on.
    unembed: (params, hidden_..D) -> (features_..D, table_VD, bias_V or None), whose product is the
      logits; ops.linear_cross_entropy takes these and never holds all logits.
    classify: (params, hidden_BTD, batch) -> logits_BC float32.
    init_cache: (batch_size, max_length) -> an empty key/value cache for `apply`.
    """

    config: Any
    init: Callable[[jax.Array], Params]
    apply: Callable[..., Output]
    unembed: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array, jax.Array | None]]
    classify: Callable[[Params, jax.Array, Batch], jax.Array]
    init_cache: Callable[[int, int], Any]

    def unstack(self, params: Params) -> Params:
        """Returns params with separate layers, for `apply` with a cache: call it before a loop."""
        return {**params, "layers": stack.unstack(params["layers"])}

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
        for name in ("tokens", "segment_ids", "token_types"):
            if name in batch:
                chex.assert_shape(batch[name], (B, T))
                chex.assert_type(batch[name], int)
        if "positions" in batch:
            chex.assert_shape(batch["positions"], ({1, B}, T))
            chex.assert_type(batch["positions"], int)
        out = apply(params, batch, **asked)
        D, L, N = config.width, config.num_layers, config.num_heads
        chex.assert_shape(out.hidden_BTD, (B, T, D))
        if out.hidden_states_LBTD is not None:
            chex.assert_shape(out.hidden_states_LBTD, (L, B, T, D))
        if out.attention_LBNTS is not None:
            chex.assert_shape(out.attention_LBNTS, (L, B, N, T, None))
        return out

    return wrapped


def positions_of(batch: Batch) -> jax.Array:
    """Returns the batch's positions [B|1, T]: given, or 0, 1, 2, ..."""
    if "positions" in batch:
        return batch["positions"]
    return jnp.arange(batch["tokens"].shape[1], dtype=jnp.int32)[None]


def count_parameters(params: Params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
