"""What comes before the first new token: the prompt in the cache, or the source and a start token.

Shapes: B rows, T prompt length, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def prefill(
    model: Any, options: Any, params: Any, tokens_BT: jax.Array, valid_BT: jax.Array
) -> tuple[Any, jax.Array, jax.Array]:
    """Returns (the cache, logits_BV of the first new token, the position_B where it will stand).

    Args:
      model: a Model; one with `encode` reads the prompts as sources.
      options: has `cache_length` and `start_id`.
      params: the model's, with layers apart.
      tokens_BT: prompts, padded on the left.
      valid_BT: 1 where a prompt's token stands, 0 for padding.
    """
    B = tokens_BT.shape[0]
    cache = model.init_cache(B, options.cache_length)
    if model.encode is not None:
        source = {"source": tokens_BT, "source_segment_ids": valid_BT}
        cache = model.encode(params, source, cache)
        tokens_BT = jnp.full((B, 1), options.start_id, jnp.int32)
        valid_BT = jnp.ones((B, 1), jnp.int32)
    positions_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1) - 1, 0)
    batch = {"tokens": tokens_BT, "segment_ids": valid_BT, "positions": positions_BT}
    out = model.apply(params, batch, cache=cache)
    logits_BV = model.logits(params, out.hidden_BTD[:, -1])
    return out.cache, logits_BV, positions_BT[:, -1] + 1
