"""L blocks of relative attention, one after the other, and what they remember of a text.

B batch, T queries, P predictions, M memory, S keys, N heads, H head width, D model width, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.modules import stack
from jaxformer.modules.attention import KeyValues
from jaxformer.modules.relative import Reach, RelativeBlock, RelativeConfig
from jaxformer.parallel.rules import constrain_batch


class Ran(NamedTuple):
    """What a stack of these blocks returns; the optional parts are None unless asked for."""

    x_BTD: jax.Array
    query_BPD: jax.Array | None
    inputs_LBTD: jax.Array | None  # each block's input: the next segment's memory
    cache: dict | None
    attention_LBNTS: jax.Array | None


def init_stack(block: RelativeBlock, key: jax.Array, reach: Reach) -> Any:
    """Returns the parameters of the layers, each leaf with a leading L axis."""
    c = block.config
    x_BTD = jnp.zeros((1, 2, c.width), jnp.float32)
    keys = jax.random.split(key, c.num_layers)
    return jax.lax.map(lambda k: block.init(k, x_BTD, reach)["params"], keys)


def run_stack(
    block: RelativeBlock,
    params: Any,
    x_BTD: jax.Array,
    reach: Reach,
    *,
    query_BPD: jax.Array | None = None,
    memory: tuple[jax.Array, ...] | None = None,
    cache: dict | None = None,
    key: jax.Array | None = None,
    return_inputs: bool = False,
    return_attention: bool = False,
) -> Ran:
    """Runs the blocks one after the other.

    Args:
      block: the block that all layers share.
      params: stacked parameters, or a tuple of L trees, from `stack.unstack` (with `cache`).
      x_BTD: the first stream's input.
      reach: see Reach.
      query_BPD: the second stream's input, or None.
      memory: L arrays [B, M, D], each block's inputs of earlier segments, or None.
      cache: {"k", "v"} as in stack.apply, and {"index"}, or None.
      key: dropout's key, or None.
      return_inputs: also return the input of each block.
      return_attention: also return the first stream's weights.
    """
    c = block.config
    keys = None if key is None else jax.random.split(key, c.num_layers)
    if cache is not None:
        # Separate layers: a scan would copy the whole cache at every step.
        kept, inputs, attention = [], [], []
        for i, layer in enumerate(stack.unstack(params, c.num_layers)):
            inputs.append(x_BTD)
            x_BTD, query_BPD, entry, weights = block.apply(
                {"params": layer}, x_BTD, reach, query_BPD=query_BPD,
                cache=KeyValues(cache["k"][i], cache["v"][i], cache["index"]),
                key=None if keys is None else keys[i], return_weights=return_attention,
            )  # fmt: skip
            kept.append(entry)
            attention.append(weights)
        k, v = (tuple(getattr(entry, name) for entry in kept) for name in ("k_CSH", "v_CHS"))
        return Ran(
            x_BTD, query_BPD, jnp.stack(inputs) if return_inputs else None,
            {**cache, "k": k, "v": v}, jnp.stack(attention) if return_attention else None,
        )  # fmt: skip

    def run(streams, each):
        (x, query), (layer, memory_BMD, layer_key) = streams, each
        new_x, query, _, weights = block.apply(
            {"params": layer}, x, reach, query_BPD=query, memory_BMD=memory_BMD, key=layer_key,
            return_weights=return_attention,
        )  # fmt: skip
        return (constrain_batch(new_x), query), (x if return_inputs else None, weights)

    if c.remat != "none":
        run = jax.checkpoint(run, policy=stack.POLICIES[c.remat], prevent_cse=False)
    memory_LBMD = None if memory is None else jnp.stack(memory)
    (x_BTD, query_BPD), (inputs_LBTD, attention_LBNTS) = jax.lax.scan(
        run, (constrain_batch(x_BTD), query_BPD), (params, memory_LBMD, keys),
        unroll=min(c.unroll or c.num_layers, c.num_layers),
    )  # fmt: skip
    return Ran(x_BTD, query_BPD, inputs_LBTD, None, attention_LBNTS)


def empty_memory(config: RelativeConfig, batch_size: int, length: int = 0) -> dict[str, Any]:
    """Returns the memory before the first segment: {"memory": L x [B, M, D], "segment_ids" [B, M]}.

    As `cache` of `apply` it makes the next segment see the ones before, of which it holds the last
    M tokens (`length`, or else the config's memory_length), without gradient.
    """
    M = length or config.memory_length
    if not M:
        raise UserError("the model has no memory; set model.memory_length, in tokens")
    zeros_BMD = jnp.zeros((batch_size, M, config.width), jnp.dtype(config.compute_dtype))
    return {
        "memory": tuple(jnp.copy(zeros_BMD) for _ in range(config.num_layers)),
        "segment_ids": jnp.zeros((batch_size, M), jnp.int32),
    }


def remember(cache: dict[str, Any], inputs_LBTD: jax.Array, segment_ids_BT: jax.Array) -> dict:
    """Returns the memory with one more segment behind it, as long as before."""
    M = cache["segment_ids"].shape[1]
    memory = tuple(
        jnp.concatenate([old, jax.lax.stop_gradient(new).astype(old.dtype)], axis=1)[:, -M:]
        for old, new in zip(cache["memory"], inputs_LBTD)
    )
    ids_BS = jnp.concatenate([cache["segment_ids"], segment_ids_BT], axis=1)
    return {**cache, "memory": memory, "segment_ids": ids_BS[:, -M:]}


def empty_cache(config: RelativeConfig, batch_size: int, max_length: int) -> dict[str, Any]:
    """Returns the keys and values of a text not begun, for writing it; leaves as in the decoder."""
    matrices, H = batch_size * config.num_heads, config.per_head
    dtype = jnp.dtype(config.compute_dtype)
    return {
        "k": tuple(jnp.zeros((matrices, max_length, H), dtype) for _ in range(config.num_layers)),
        "v": tuple(jnp.zeros((matrices, H, max_length), dtype) for _ in range(config.num_layers)),
        "valid": jnp.zeros((batch_size, max_length), bool),
        "index": jnp.zeros((), jnp.int32),
    }
