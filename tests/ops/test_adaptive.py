"""Adaptive input and softmax against their definition, word by word."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import cross_entropy, linear_cross_entropy
from jaxformer.ops.adaptive import adaptive_embed, adaptive_softmax

D, SIZES, WIDTHS = 6, (5, 4, 7), (6, 3, 2)
V = sum(SIZES)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


TABLES = [normal(size, width) for size, width in zip(SIZES, WIDTHS)]
BIASES = [normal(size) for size in SIZES]
PROJECTIONS = [normal(width, D) for width in WIDTHS]
CLUSTER, CLUSTER_BIAS = normal(2, WIDTHS[0]), normal(2)


def test_embedding_looks_into_the_words_own_cluster():
    tokens = jnp.arange(V).reshape(2, 8)
    rows = np.concatenate([t @ p for t, p in zip(TABLES, PROJECTIONS)])
    np.testing.assert_allclose(
        adaptive_embed(tokens, TABLES, PROJECTIONS).reshape(V, D), rows, atol=1e-5
    )
    outside = adaptive_embed(jnp.array([-1, V, 3]), TABLES, PROJECTIONS)
    assert np.isnan(outside[:2]).all() and np.isfinite(outside[2]).all()


@pytest.mark.parametrize("projected", [True, False])
def test_softmax_is_the_product_of_two_choices(projected):
    """p(word) = p(cluster) p(word in the cluster); the sum is 1, and so the loss is -log p."""
    tables = TABLES if projected else [normal(size, D) for size in SIZES]
    reads = [p.T for p in PROJECTIONS] if projected else None
    hidden = normal(3, 4, D)
    features, table, bias = adaptive_softmax(hidden, tables, BIASES, CLUSTER, CLUSTER_BIAS, reads)
    got = np.asarray(jnp.einsum("btd,vd->btv", features, table) + bias)
    for b, t in np.ndindex(3, 4):
        read = [hidden[b, t] @ r for r in reads] if reads else [hidden[b, t]] * 3
        logits = [table @ h + bias for table, h, bias in zip(tables, read, BIASES)]
        head = np.concatenate([logits[0], CLUSTER @ read[0] + CLUSTER_BIAS])
        head = head - np.log(np.exp(head).sum())
        want = [head[: SIZES[0]]]
        for i in (1, 2):
            within = np.asarray(logits[i]) - np.log(np.exp(logits[i]).sum())
            want.append(head[SIZES[0] + i - 1] + within)
        np.testing.assert_allclose(got[b, t], np.concatenate(want), atol=2e-5)
    np.testing.assert_allclose(np.exp(got).sum(-1), 1.0, atol=1e-5)


@pytest.mark.slow
def test_gradients_go_through_the_loss_that_never_holds_all_logits():
    hidden, labels = normal(2, 5, D), jnp.asarray(RNG.integers(0, V, (2, 5)))

    def through(loss):
        def total(hidden, tables):
            reads = [p.T for p in PROJECTIONS]
            return loss(*adaptive_softmax(hidden, tables, BIASES, CLUSTER, CLUSTER_BIAS, reads))

        return jax.value_and_grad(total, argnums=(0, 1))(hidden, TABLES)

    def in_parts(x, table, bias):
        return linear_cross_entropy(x, table, labels, bias_V=bias, chunk=2)[0]

    def at_once(x, table, bias):
        return cross_entropy(jnp.einsum("btd,vd->btv", x, table) + bias, labels)[0]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        through(in_parts),
        through(at_once),
    )
