"""One loop over chunks of a line, for ways to attend whose past is a sum of fixed size.

Within a chunk queries meet keys in a small matrix; all before it they meet in a carried state. The
cost is linear in the length, and all of it is in matmuls (Katharopoulos et al., 2020, section 3.3;
by chunks: Hua et al., 2022, section 3.2). The body is recomputed in the backward pass, so that
only the states between chunks are kept.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, L length of
a line, C places of a chunk, n chunks, R = G C rows of a chunk's queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.attention import scores
from jaxformer.ops.masks import lengthen

Step = Callable[[Any, Any], tuple[Any, Any]]


def over_chunks(step: Step, carry: Any, chunks: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan`, whose backward pass keeps the carries and recomputes the rest.

    Args:
      step: (carry, chunk) -> (carry, out).
      carry: the state before the first chunk.
      chunks: a tree of arrays with the number of the chunk as their first axis.
      reverse: from the last chunk to the first.

    Returns:
      (last carry, outs in the order of the line).
    """
    axes = frozenset().union(*map(scores.varying_axes, jax.tree.leaves((carry, chunks))))
    carry = jax.tree.map(lambda x: scores.vary(x, axes), carry)
    if jax.tree.leaves(chunks)[0].shape[0] == 1:
        # One step of decoding: no loop, so that nothing is copied into one.
        carry, out = step(carry, jax.tree.map(lambda x: x[0], chunks))
        return carry, jax.tree.map(lambda x: x[None], out)
    # Inside a scan nothing can be shared between forward and backward: no barrier is needed.
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, chunks, reverse=reverse)


def cut(x_BL: jax.Array, size: int) -> jax.Array:
    """Returns [n, B, C, ...] of [B, L, ...], with zeros at the end."""
    n = -(-x_BL.shape[1] // size)
    x_BL = lengthen(x_BL, 1, n * size)
    return jnp.moveaxis(x_BL.reshape(x_BL.shape[0], n, size, *x_BL.shape[2:]), 1, 0)


def cut_keys(x_BLKH: jax.Array, size: int) -> jax.Array:
    """Returns [n, B, K, C, H]."""
    return cut(x_BLKH, size).swapaxes(2, 3)


def cut_queries(x_BLNH: jax.Array, size: int, num_kv_heads: int) -> jax.Array:
    """Returns [n, B, K, R, H]: the heads that share keys are rows of one matrix."""
    x_nBNCH = cut_keys(x_BLNH, size)
    n, B, _, _, H = x_nBNCH.shape
    return x_nBNCH.reshape(n, B, num_kv_heads, -1, H)


def join_queries(x_nBKRH: jax.Array, size: int, length: int) -> jax.Array:
    """Returns [B, L, N, H]; the opposite of `cut_queries`."""
    n, B, _, _, H = x_nBKRH.shape
    x_nBNCH = x_nBKRH.reshape(n, B, -1, size, H)
    return x_nBNCH.transpose(1, 0, 3, 2, 4).reshape(B, n * size, -1, H)[:, :length]


class Seen(NamedTuple):
    """Who sees what in a chunk; a carried state holds the keys of one segment.

    Attributes:
      inside_BCC: which of its keys each query sees.
      state_BC: whether a query sees the carried state.
      stays_B: whether what was carried is carried on; None: always.
      joins_BC: which of its keys are carried on.
      id_B: the segment that is carried on.
    """

    inside_BCC: jax.Array
    state_BC: jax.Array
    stays_B: jax.Array | None
    joins_BC: jax.Array
    id_B: jax.Array


def seen(
    q_ids_BC: jax.Array,
    k_ids_BC: jax.Array,
    id_B: jax.Array,
    *,
    causal: bool,
    packed: bool,
    reverse: bool = False,
) -> Seen:
    """Says who sees what; segments are runs, and the state is carried towards the line's end.

    Args:
      q_ids_BC: ids of the chunk's queries.
      k_ids_BC: of its keys.
      id_B: of the keys in the carried state.
      causal: whether keys of the chunk see only what is before them.
      packed: whether there are other ids than 0 and 1.
      reverse: whether the state is carried towards the line's start.
    """
    shown_BC = k_ids_BC != 0
    inside_BCC = (q_ids_BC[:, :, None] == k_ids_BC[:, None]) & shown_BC[:, None]
    if causal:
        inside_BCC &= jnp.tril(jnp.ones(inside_BCC.shape[1:], jnp.bool_))
    number_C = jnp.arange(1, k_ids_BC.shape[1] + 1)
    number_C = number_C[::-1] if reverse else number_C
    last_B1 = jnp.argmax(jnp.where(shown_BC, number_C, 0), axis=1)[:, None]
    found_B = jnp.take_along_axis(k_ids_BC, last_B1, axis=1)[:, 0]
    id_then_B = jnp.where(found_B != 0, found_B, id_B)
    if not packed:
        return Seen(inside_BCC, q_ids_BC != 0, None, shown_BC, id_then_B)
    state_BC = (q_ids_BC == id_B[:, None]) & (q_ids_BC != 0)
    joins_BC = shown_BC & (k_ids_BC == id_then_B[:, None])
    return Seen(inside_BCC, state_BC, id_then_B == id_B, joins_BC, id_then_B)
