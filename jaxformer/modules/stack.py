"""L equal blocks: initialised by vmap, run by one scan, rematerialised by policy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxformer.modules.attention import KeyValues
from jaxformer.modules.block import Block
from jaxformer.parallel.rules import constrain_batch

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "named": jax.checkpoint_policies.save_only_these_names("attention", "feed_forward"),
}


class Stacked(NamedTuple):
    """What a stack returns; the optional parts are None unless asked for."""

    x_BTD: jax.Array
    cache: Any = None  # {"k", "v"}: [L, B, S, K, H]
    hidden_states_LBTD: jax.Array | None = None  # the input of each block
    attention_LBNTS: jax.Array | None = None


def init(block: Block, key: jax.Array, x_BTD: jax.Array, **inputs: Any) -> Any:
    """Returns the parameters of `config.num_layers` blocks, each leaf with a leading L axis."""
    keys = jax.random.split(key, block.config.num_layers)
    return jax.vmap(lambda k: block.init(k, x_BTD, **inputs)["params"])(keys)


def apply(
    block: Block,
    params: Any,
    x_BTD: jax.Array,
    *,
    cache: Any = None,
    index: jax.Array | None = None,
    key: jax.Array | None = None,
    return_hidden: bool = False,
    return_attention: bool = False,
    **inputs: Any,
) -> Stacked:
    """Runs the blocks one after the other.

    Args:
      block: the block that all layers share.
      params: stacked parameters, from `init`.
      x_BTD: the stream's input.
      cache: {"k", "v"} of [L, B, S, K, H], or None.
      index: where in the cache this call's keys go (with `cache`).
      key: dropout's key, or None: no dropout. Layer l uses the l-th split.
      return_hidden: also return the input of each block.
      return_attention: also return each block's attention weights.
      **inputs: what every block is given alike (mask, bias, rotary, memory_BSD, ...).
    """
    config = block.config
    keys = None if key is None else jax.random.split(key, config.num_layers)

    def body(x, layer):
        layer_params, layer_cache, layer_key = layer
        kept = None if layer_cache is None else KeyValues(layer_cache["k"], layer_cache["v"], index)
        y, kept, weights = block.apply(
            {"params": layer_params}, x, cache=kept, key=layer_key,
            return_weights=return_attention, **inputs,
        )  # fmt: skip
        kept = None if kept is None else {"k": kept.k_BSKH, "v": kept.v_BSKH}
        return constrain_batch(y), (kept, x if return_hidden else None, weights)

    if config.remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[config.remat], prevent_cse=False)
    x_BTD, (cache, hidden, weights) = jax.lax.scan(
        body, constrain_batch(x_BTD), (params, cache, keys), unroll=config.unroll or config.num_layers
    )
    return Stacked(x_BTD, cache, hidden, weights)
