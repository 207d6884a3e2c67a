"""L equal blocks: initialised by one map, run by one scan, rematerialised by policy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.modules.attention import KeyValues, join_projections
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
    cache: Any = None  # {"k": L x [B*K, S, H], "v": L x [B*K, H, S], "history"}
    hidden_states_LBTD: jax.Array | None = None  # the input of each block
    attention_LBNTS: jax.Array | None = None


def init(block: Block, key: jax.Array, x_BTD: jax.Array, **inputs: Any) -> Any:
    """Returns the parameters of `config.num_layers` blocks, each leaf with a leading L axis."""
    # A map and not vmap: the values are the same, and random numbers compile in half the time.
    keys = jax.random.split(key, block.config.num_layers)
    return jax.lax.map(lambda k: block.init(k, x_BTD, **inputs)["params"], keys)


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
      params: stacked parameters, from `init`, or a tuple of L trees, from `unstack`.
      x_BTD: the stream's input.
      cache: {"k", "v"}, tuples of L arrays [B*K, S, H] and [B*K, H, S], and {"history"}, a tuple of
        what each layer's short convolutions saw last; or None.
      index: where in the cache this call's keys go (with `cache`).
      key: dropout's key, or None: no dropout. Layer l uses the l-th split.
      return_hidden: also return the input of each block.
      return_attention: also return each block's attention weights.
      **inputs: what every block is given alike (mask, bias, rotary, memory_BSD, ...).
    """
    config = block.config
    keys = None if key is None else jax.random.split(key, config.num_layers)
    asked = {"return_weights": return_attention, **inputs}

    def layer(x, layer_params, layer_key, kept):
        return block.apply({"params": layer_params}, x, cache=kept, key=layer_key, **asked)

    def body(x, of_layer):
        layer_params, layer_key = of_layer
        y, _, weights = layer(x, layer_params, layer_key, None)
        return constrain_batch(y), (x if return_hidden else None, weights)

    if cache is not None:
        # Separate layers: a scan would copy the whole cache, and slice all weights, at every step.
        layers, kept, hidden, weights = unstack(params), [], [], []
        for i in range(config.num_layers):
            hidden.append(x_BTD)
            entry = KeyValues(cache["k"][i], cache["v"][i], index, cache["history"][i])
            x_BTD, entry, w = layer(x_BTD, layers[i], None if keys is None else keys[i], entry)
            kept.append(entry)
            weights.append(w)
        return Stacked(
            x_BTD,
            {
                "k": tuple(entry.k_CSH for entry in kept),
                "v": tuple(entry.v_CHS for entry in kept),
                "history": tuple(entry.history_BPD for entry in kept),
            },
            jnp.stack(hidden) if return_hidden else None,
            jnp.stack(weights) if return_attention else None,
        )

    if config.remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[config.remat], prevent_cse=False)
    x_BTD, (hidden, weights) = jax.lax.scan(
        body, constrain_batch(x_BTD), (params, keys), unroll=config.unroll or config.num_layers
    )
    return Stacked(x_BTD, None, hidden, weights)


def unstack(params: Any) -> tuple[Any, ...]:
    """Returns stacked parameters as a tuple of one tree a layer, for a decode loop.

    Done once before the loop begins, for inside it each step would copy all weights. A tuple is
    returned as it is.
    """
    if isinstance(params, tuple):
        return params

    def layer(i: int) -> Any:
        of_layer = jax.tree.map(lambda leaf: leaf[i], params)
        return {**of_layer, "attention": join_projections(of_layer["attention"])}

    num_layers = jax.tree.leaves(params)[0].shape[0]
    layers = tuple(layer(i) for i in range(num_layers))
    return jax.lax.optimization_barrier(layers)  # or XLA moves the slices back into the loop
