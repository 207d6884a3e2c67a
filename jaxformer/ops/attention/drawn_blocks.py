"""Blocks of keys that each head draws for each chunk of queries (BigBird), for `banded`.

Shapes: B batch, N heads, S keys, H head width, t keys of a block, J blocks, R of them are drawn for
each of I chunks.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.masks import Mask


class Drawn(NamedTuple):
    """Blocks of query_chunk keys that each head's chunk looks at too, -1 for none.

    K = N, and query_chunk divides T and S. A block that is given twice counts twice.
    """

    blocks_NIR: jax.Array
    mask: Mask | None = None
    bias: Any = None


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class OfHeads(Mask):
    """A mask, or a bias, asked about keys_Ne, others for each head; no key is below 0."""

    whole: Any

    def block(self, q_index_t, keys_Ne):
        there_1N1e = (keys_Ne >= 0)[None, :, None, :]
        if self.whole is None:
            N, e = keys_Ne.shape
            return jnp.broadcast_to(there_1N1e, (1, N, len(q_index_t), e))
        keys_Ne = jnp.maximum(keys_Ne, 0)
        x_BNnte = jax.vmap(lambda k_e: self.whole.block(q_index_t, k_e), out_axes=1)(keys_Ne)
        own_N = jnp.arange(len(keys_Ne)) if x_BNnte.shape[2] > 1 else 0
        x_BNte = x_BNnte[:, jnp.arange(len(keys_Ne)), own_N]
        return x_BNte & there_1N1e if x_BNte.dtype == jnp.bool_ else x_BNte


def take(x_BNSH: jax.Array, blocks_NR: jax.Array, size: int) -> jax.Array:
    """Returns the drawn blocks of keys, one after the other: [B, N, R·size, H]."""
    B, N, S, H = x_BNSH.shape
    x_BNJtH = x_BNSH.reshape(B, N, S // size, size, H)
    of_head = jax.vmap(lambda x_BJtH, j_R: x_BJtH[:, jnp.maximum(j_R, 0)], (1, 0), 1)
    return of_head(x_BNJtH, blocks_NR).reshape(B, N, -1, H)


def add(total_BNHS: jax.Array, d_iBNHe: jax.Array, drawn_NIR: jax.Array) -> jax.Array:
    """Adds each drawn block's gradient where the block lies."""
    (B, N, H, S), (I, R) = total_BNHS.shape, drawn_NIR.shape[1:]
    t = d_iBNHe.shape[-1] // R
    d_NIRBHt = jnp.transpose(d_iBNHe.reshape(I, B, N, H, R, t), (2, 0, 4, 1, 3, 5))
    total_NJBHt = jnp.transpose(total_BNHS.reshape(B, N, H, S // t, t), (1, 3, 0, 2, 4))
    # What is drawn from nowhere (-1) is hidden, so its gradient is 0 wherever it is added.
    heads_N11 = jnp.arange(N)[:, None, None]
    total_NJBHt = total_NJBHt.at[heads_N11, jnp.maximum(drawn_NIR, 0)].add(d_NIRBHt)
    return jnp.transpose(total_NJBHt, (2, 0, 3, 1, 4)).reshape(B, N, H, S)
