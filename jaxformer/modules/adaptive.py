"""Tables of words as Transformer-XL has them: perhaps narrower, the rarer the words.

B batch, T time, D model width, V vocabulary, E embedding width, A width of the head's features.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.ops.adaptive import adaptive_embed, adaptive_softmax
from jaxformer.parallel.rules import gather_width


class Words(nn.Module):
    """The token tables, one or one a cluster, and their projections to the model's width."""

    vocab_size: int
    width: int
    embedding_width: int
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    init_std: float = 0.02
    compute_dtype: str = "float32"

    @property
    def clusters(self) -> list[tuple[int, int]]:
        """(words, width) of the head and of each tail."""
        ends = (0, *self.cutoffs, self.vocab_size)
        sizes = [stop - start for start, stop in itertools.pairwise(ends)]
        return [(size, self.embedding_width // self.div_val**i) for i, size in enumerate(sizes)]

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Returns x_BTD, scaled by sqrt(D)."""
        c, dtype = self, jnp.dtype(self.compute_dtype)
        start, project = nn.initializers.normal(c.init_std), nn.initializers.normal(0.01)
        if c.div_val == 1:
            table_VE = self.param("tokens", start, (c.vocab_size, c.embedding_width))
            x_BTD = ops.embed(tokens_BT, gather_width(table_VE), dtype=dtype)
            if c.embedding_width != c.width:
                kernel_ED = self.param("projection", project, (c.embedding_width, c.width))
                x_BTD = ops.linear(x_BTD, kernel_ED)
        else:
            tables, kernels = [], []
            for i, (size, width) in enumerate(c.clusters):
                tables.append(gather_width(self.param(f"tokens_{i}", start, (size, width))))
                kernels.append(self.param(f"projection_{i}", project, (width, c.width)))
            x_BTD = adaptive_embed(tokens_BT, tables, kernels, dtype=dtype)
        return x_BTD * jnp.asarray(c.width**0.5, dtype)


class WordHead(nn.Module):
    """What the output has of its own: biases, tails, projections, untied tables."""

    words: Words
    tie_embeddings: bool = True
    share_projections: bool = True

    @nn.compact
    def __call__(self, hidden: jax.Array, tables: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (features_..A, table_VA, bias_V); `tables` are the parameters of `words`."""
        c = self.words
        clusters, E = c.clusters, c.embedding_width
        start, zeros = nn.initializers.normal(c.init_std), nn.initializers.zeros
        project = nn.initializers.normal(0.01)

        def table(name: str, size: int, width: int) -> jax.Array:
            own = name.replace("tokens", "table")
            return tables[name] if self.tie_embeddings else self.param(own, start, (size, width))

        def projection(i: int) -> jax.Array:
            if i and self.share_projections:
                return tables["projection" if c.div_val == 1 else f"projection_{i}"].T
            return self.param(f"projection_{i}", project, (c.width, clusters[i][1]))

        projections = None
        if c.div_val > 1 or c.width != E:
            projections = [projection(i) for i in range(len(clusters))]
        if c.div_val == 1:
            table_VE = table("tokens", c.vocab_size, E)
            bias_V = self.param("bias", zeros, (c.vocab_size,))
            if not c.cutoffs:
                hidden = hidden if projections is None else ops.linear(hidden, projections[0])
                return hidden, table_VE, bias_V
            parts, biases = jnp.split(table_VE, c.cutoffs), jnp.split(bias_V, c.cutoffs)
        else:
            parts = [table(f"tokens_{i}", *cluster) for i, cluster in enumerate(clusters)]
            biases = [self.param(f"bias_{i}", zeros, (n,)) for i, (n, _) in enumerate(clusters)]
        cluster_CE = self.param("cluster", start, (len(c.cutoffs), E))
        cluster_bias_C = self.param("cluster_bias", zeros, (len(c.cutoffs),))
        return adaptive_softmax(hidden, parts, biases, cluster_CE, cluster_bias_C, projections)
