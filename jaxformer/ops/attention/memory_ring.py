"""A memory of keys and values that forgets the oldest (Wu et al., 2022, section 3.1).

Shapes: B batch, T new entries, M memory entries, K key/value heads, H head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.masks import Mask

Memory = dict[str, Any]


def init_memory(
    batch_size: int, size: int, num_kv_heads: int, head_dim: int, dtype: Any = jnp.float32
) -> Memory:
    """Returns a memory that holds nothing yet.

    Returns:
      {"k" and "v": [B, M, K, H], "segment_ids": [B, M] int32, the document of each entry, 0 where
      there is none, "index": int32 scalar, where the next entry goes}.

    Raises:
      ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"init_memory: the size must be at least 1 entry, not {size}")
    shape = (batch_size, size, num_kv_heads, head_dim)
    return {
        "k": jnp.zeros(shape, dtype),
        "v": jnp.zeros(shape, dtype),
        "segment_ids": jnp.zeros((batch_size, size), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def append(
    memory: Memory,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    is_new_document_B: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> Memory:
    """Returns the memory with T more entries, over the oldest ones if it is full; no gradient.

    Args:
      memory: from `init_memory` or from here.
      k_BTKH: keys of one more piece of text; normalised, if the queries that will search are (Wu
        et al., 2022, section 3.2).
      v_BTKH: its values.
      is_new_document_B: bool; True empties a row first, for its text goes on with another document.
      segment_ids_BT: int32 document of each entry within the row, 0 for padding, which is never
        found; 1 if None. A query finds its own document: see `seen`.

    Raises:
      ValueError: shapes that do not fit.
    """
    (B, M, K, H), T = memory["k"].shape, k_BTKH.shape[1]
    if k_BTKH.shape != (B, T, K, H) or v_BTKH.shape != k_BTKH.shape:
        raise ValueError(
            f"append: keys {k_BTKH.shape} and values {v_BTKH.shape} must be [{B}, T, {K}, {H}]"
        )
    ids_BM, index = memory["segment_ids"], memory["index"]
    if is_new_document_B is not None:
        ids_BM = jnp.where(is_new_document_B[:, None], 0, ids_BM)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((B, T), jnp.int32)
    kept = min(T, M)  # of more than fits, the last
    place = (index + T - kept + jnp.arange(kept)) % M

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jax.lax.stop_gradient(new[:, T - kept :]).astype(old.dtype)
        return old.at[:, place].set(new, unique_indices=True, mode="promise_in_bounds")

    return {
        "k": write(memory["k"], k_BTKH),
        "v": write(memory["v"], v_BTKH),
        "segment_ids": write(ids_BM, segment_ids_BT),
        "index": (index + T) % M,
    }


def seen(memory: Memory, segment_ids_BT: jax.Array) -> Mask:
    """Returns the mask under which queries find what the memory holds of their own document.

    Args:
      memory: see `init_memory`.
      segment_ids_BT: int32 document of each query, as `append` is given them.
    """
    return masks.segments(segment_ids_BT, memory["segment_ids"])
