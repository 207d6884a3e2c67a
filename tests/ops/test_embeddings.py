"""Embeddings look up rows, sum their gradients in the table's dtype, and never guess a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.embeddings import embed

TABLE = jax.random.normal(jax.random.key(0), (5, 4))


def test_rows_scale_and_dtype():
    tokens = jnp.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(embed(tokens, TABLE), np.asarray(TABLE)[np.asarray(tokens)])
    np.testing.assert_allclose(embed(tokens, TABLE, scale=2.0), 2 * embed(tokens, TABLE))
    assert embed(tokens, TABLE, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_an_id_outside_the_table_gives_nan():
    got = np.asarray(jax.jit(embed)(jnp.array([-1, 5, 2**31 - 1, 1]), TABLE))
    assert np.isnan(got[:3]).all() and np.isfinite(got[3]).all()


def test_the_gradient_counts_every_use_in_float32():
    tokens = jnp.full((300,), 3)  # bfloat16 cannot count beyond 256

    def total(table):
        return embed(tokens, table, dtype=jnp.bfloat16).astype(jnp.float32).sum()

    gradient = jax.grad(total)(TABLE)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient[3], 300.0)
    np.testing.assert_array_equal(gradient[:3], 0.0)
