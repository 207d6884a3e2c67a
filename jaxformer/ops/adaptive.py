"""Adaptive input and adaptive softmax: frequent words get wide vectors, rare ones narrow ones.

The vocabulary is in order of frequency and cut into clusters: the head, and C tails.

Shapes: D model width, V vocabulary, V_i and E_i the words and the width of cluster i,
A = E_0 + ... + E_C + C + 1; `...` anything (usually B batch, T time).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxformer.ops.embeddings import embed
from jaxformer.ops.linear import einsum, linear


def adaptive_embed(
    tokens: jax.Array,
    tables_VE: Sequence[jax.Array],
    projections_ED: Sequence[jax.Array],
    *,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Looks each token up in its cluster's table and projects it (Baevski & Auli, 2019, section 3).

    Args:
      tokens: integer ids [...]; one outside the vocabulary gives NaN.
      tables_VE: the table [V_i, E_i] of each cluster.
      projections_ED: the matrix [E_i, D] of each cluster.
      dtype: of the result; the tables' if None.

    Returns:
      [..., D].
    """
    first, x = 0, None
    last = len(tables_VE) - 1
    for i, (table_VE, projection_ED) in enumerate(zip(tables_VE, projections_ED)):
        size = table_VE.shape[0]
        local = tokens - first
        here = (local >= 0) & (local < size)
        # What is in no cluster at all is left to the last one, which makes it NaN.
        outside = (tokens < 0) | (local >= size) if i == last else jnp.zeros_like(here)
        row = embed(jnp.where(here, local, jnp.where(outside, size, 0)), table_VE, dtype=dtype)
        mine = jnp.where((here | outside)[..., None], linear(row, projection_ED), 0)
        x, first = mine if x is None else x + mine, first + size
    assert x is not None
    return x


def adaptive_softmax(
    hidden: jax.Array,
    tables_VE: Sequence[jax.Array],
    biases_V: Sequence[jax.Array],
    cluster_CE: jax.Array,
    cluster_bias_C: jax.Array,
    projections_DE: Sequence[jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A softmax over the head and the tails, and one within each tail (Grave et al., 2017).

    log p(w) = logit(w) - log Z(cluster of w) + log p(cluster) is a product once the last two are
    seen as features of the token, so all that takes a product takes this too. It sums to 1 by
    itself. It spares parameters, and no time: all logits are computed.

    Args:
      hidden: [..., D].
      tables_VE: the table [V_i, E_i] of each cluster.
      biases_V: the bias [V_i] of each cluster.
      cluster_CE: the vectors of the tails among the head's words; E is E_0.
      cluster_bias_C: their biases.
      projections_DE: the matrix [D, E_i] of each cluster; None: all clusters read `hidden`.

    Returns:
      (features [..., A], table_VA, bias_V), float32: their product plus bias is log p.
    """
    hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if projections_DE is None:
        read = [hidden] * len(tables_VE)
    else:
        read = [linear(hidden, w_DE) for w_DE in projections_DE]

    def logits(i: int) -> jax.Array:
        return einsum("...E,VE->...V", read[i], tables_VE[i]) + biases_V[i]

    of_tails = einsum("...E,CE->...C", read[0], cluster_CE) + cluster_bias_C
    log_z = jax.nn.logsumexp(jnp.concatenate([logits(0), of_tails], axis=-1), axis=-1)
    offsets = [-log_z]
    for i in range(1, len(tables_VE)):
        offsets.append(of_tails[..., i - 1] - log_z - jax.nn.logsumexp(logits(i), axis=-1))
    offsets_C = jnp.stack(offsets, axis=-1)

    clusters, rows = len(tables_VE), []
    widths = [table.shape[1] for table in tables_VE]
    for i, table_VE in enumerate(tables_VE):
        before, after = sum(widths[:i]), sum(widths[i + 1 :])
        if projections_DE is None:
            before = after = 0
        row = jnp.pad(table_VE.astype(jnp.float32), ((0, 0), (before, after + clusters)))
        rows.append(row.at[:, i - clusters].set(1.0))
    features = read[:1] if projections_DE is None else read
    return (
        jnp.concatenate([*features, offsets_C], axis=-1),
        jnp.concatenate(rows),
        jnp.concatenate(list(biases_V)).astype(jnp.float32),
    )
