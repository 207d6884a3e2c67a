"""What RETRO keeps of neighbours while it writes: found when a chunk ends, encoded once.

Shapes: B batch, T new tokens, L chunks of m tokens, n chunks with new neighbours, P neighbours of a
chunk, r tokens of a neighbour, S = P r, R layers that read them, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.modules import retro
from jaxformer.modules.retro import Retrieved


def with_retrieval(config: Any, cache: dict, neighbours: int, length: int) -> dict:
    """Returns a cache that can also keep what was found for each chunk as the text is written.

    A call of `apply` with it reads "neighbours" [B, n, P, r] as those of the n chunks from the one
    on in which its first token stands; those of a chunk that has not ended yet are not kept. So
    a text's beginning comes with all of its whole chunks' neighbours, and each token after that
    ends a chunk with that chunk's. Rows must not be padded on the left: it would move the chunks.

    Args:
      config: the model's.
      cache: from `init_cache`.
      neighbours: P.
      length: r, tokens of a neighbour.
    """
    B, room = cache["valid"].shape
    S, chunks, R = neighbours * length, room // config.chunk, len(config.looking)
    dtype = jnp.dtype(config.compute_dtype)
    shape = (B, chunks, S, config.kv_heads, config.per_head)
    return cache | {
        "neighbour_k": tuple(jnp.zeros(shape, dtype) for _ in range(R)),
        "neighbour_v": tuple(jnp.zeros(shape, dtype) for _ in range(R)),
        "neighbour_valid": jnp.zeros((B, chunks, S), bool),
        "neighbour_states": jnp.zeros((B, room, config.width), dtype),
    }


def remembered(
    config: Any, encode: Callable[..., jax.Array], params: Any, cache: dict,
    found_BnPr: jax.Array | None, length: int, kept: dict[str, Any], key: jax.Array | None,
) -> Callable[[int, jax.Array], Retrieved]:  # fmt: skip
    """Returns what gives each layer the neighbours so far; with what was found now, if anything.

    Args:
      config: the model's.
      encode: (params, neighbours, states_BTD of their chunks, key) -> their states [B, n, S, E].
      params: the model's.
      cache: from `with_retrieval`.
      found_BnPr: the neighbours of the n chunks from the one on in which the first new token is.
      length: T.
      kept: receives the cache's new entries.
      key: of dropout.
    """
    m, index = config.chunk, cache["index"]
    first = index // m

    def source(number: int, x_BTD: jax.Array) -> Retrieved:
        if not number:
            kept.update({name: cache[name] for name in cache if name.startswith("neighbour_")})
            old = kept["neighbour_states"]
            kept["neighbour_states"] = jax.lax.dynamic_update_slice(
                old, x_BTD.astype(old.dtype), (0, index, 0)
            )
            if found_BnPr is not None:
                add(found_BnPr, x_BTD.dtype)
        of_layer = kept["neighbour_k"][number], kept["neighbour_v"][number]
        return Retrieved(kept["neighbour_valid"], None, m, keys=of_layer)

    def add(found: jax.Array, dtype: Any) -> None:
        B, n, P, r = found.shape
        chunk_n = first + jnp.arange(n)
        rows = first * m + jnp.arange(n * m)
        states_BTD = jnp.take(kept["neighbour_states"], rows, axis=1, mode="clip")
        states = encode(params, found, states_BTD.astype(dtype), key)
        ended_n = (chunk_n + 1) * m <= index + length

        def put(kept_BL: jax.Array, new_Bn: jax.Array) -> jax.Array:
            return kept_BL.at[:, chunk_n].set(new_Bn.astype(kept_BL.dtype), mode="drop")

        valid_BnS = (found >= 0).reshape(B, n, P * r) & ended_n[:, None]
        kept["neighbour_valid"] = put(kept["neighbour_valid"], valid_BnS)
        looks = params["cross"]["layers"]["cross_attention"]
        pairs = [
            retro.keys_of(
                config, jax.tree.map(lambda x, i=i: x[i], looks), states, retro.places_of(P, r)
            )
            for i in range(len(config.looking))
        ]
        for at, name in enumerate(("neighbour_k", "neighbour_v")):
            kept[name] = tuple(put(x, pair[at]) for x, pair in zip(kept[name], pairs, strict=True))

    return source
