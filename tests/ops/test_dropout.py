"""Dropout keeps the mean, repeats by key, and is off without one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.dropout import dropout

X = jnp.full((100, 200), 3.0)


def test_what_is_kept_is_scaled_and_the_share_is_right():
    got = np.asarray(dropout(X, 0.25, jax.random.key(0)))
    assert set(np.unique(got)) == {0.0, 4.0}
    assert abs((got > 0).mean() - 0.75) < 4 * (0.25 * 0.75 / got.size) ** 0.5


def test_the_key_decides():
    one, two = (dropout(X, 0.5, jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(
        one, jax.jit(dropout, static_argnums=1)(X, 0.5, jax.random.key(0))
    )
    assert (np.asarray(one) != np.asarray(two)).any()
    assert dropout(X, 0.5, None) is X and dropout(X, 0.0, jax.random.key(0)) is X
    assert dropout(X.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_out_of_range_is_named(rate):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        dropout(X, rate, jax.random.key(0))
