"""Positions that are added, to embeddings or to logits, as published."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.positions import alibi, learned, sinusoidal, t5_bucket, t5_relative_bias


def test_sinusoidal_is_the_papers_formula():
    positions, width = np.array([[0, 1, 7, 500]]), 16
    got = sinusoidal(jnp.array(positions), width)
    for i in range(width // 2):
        angle = positions / 10_000 ** (2 * i / width)
        np.testing.assert_allclose(got[..., 2 * i], np.sin(angle), atol=5e-5)
        np.testing.assert_allclose(got[..., 2 * i + 1], np.cos(angle), atol=5e-5)
    with pytest.raises(ValueError, match="even"):
        sinusoidal(jnp.array(positions), 7)


def test_concatenated_sinusoids_are_those_of_marian():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(50, 16)
    want = theirs.create_weight() if hasattr(theirs, "create_weight") else theirs.weight
    got = sinusoidal(jnp.arange(50)[None], 16, interleaved=False)[0]
    np.testing.assert_allclose(got, np.asarray(want.detach()), atol=1e-5)


def test_learned_positions_beyond_the_table_are_nan():
    table = jnp.arange(6.0).reshape(3, 2)
    got = learned(jnp.array([[2, 0, 3, -1]]), table)
    np.testing.assert_array_equal(got[0, :2], table[jnp.array([2, 0])])
    assert np.isnan(got[0, 2:]).all()


@pytest.mark.parametrize("num_heads", [1, 8, 12])
def test_alibi_is_blooms_up_to_a_constant_per_query(num_heads):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    length = 9
    theirs = build_alibi_tensor(torch.ones(1, length), num_heads, torch.float32).numpy()
    want_NTS = np.broadcast_to(theirs.reshape(num_heads, 1, length), (num_heads, length, length))
    got_NTS = np.asarray(alibi(num_heads).block(range(length), range(length))[0])
    causal = np.tril(np.ones((length, length), bool))
    # Softmax does not see what is added to a whole row: compare what differs from the diagonal.
    difference = want_NTS - np.diagonal(want_NTS, axis1=1, axis2=2)[..., None] - got_NTS
    np.testing.assert_allclose(difference[:, causal], 0.0, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5(bidirectional):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = np.arange(-300, 301)
    for num_buckets, max_distance in ((32, 128), (8, 20)):
        want = T5Attention._relative_position_bucket(
            torch.tensor(relative), bidirectional, num_buckets, max_distance
        )
        got = t5_bucket(
            jnp.array(relative),
            num_buckets,
            bidirectional=bidirectional,
            max_distance=max_distance,
        )
        np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "bidirectional, t, s", [(True, 5, 7), (False, 7, 5), (False, 1, 4), (True, 4, 1)]
)
def test_a_block_of_t5_bias_is_the_table_at_the_buckets(bidirectional, t, s):
    table = jax.random.normal(jax.random.key(0), (8, 3))
    kwargs = {"bidirectional": bidirectional, "max_distance": 9}
    q_index, k_index, offset = range(2, 2 + t), range(3, 3 + s), 4
    relative = np.array(k_index)[None] - (np.array(q_index)[:, None] + offset)

    def direct(table):
        return jnp.moveaxis(table[t5_bucket(jnp.array(relative), 8, **kwargs)], -1, 0)[None]

    def block(table, q_index=q_index, k_index=k_index):
        return t5_relative_bias(table, offset=offset, **kwargs).block(q_index, k_index)

    np.testing.assert_array_equal(block(table), direct(table))
    np.testing.assert_array_equal(
        block(table, jnp.array(q_index), jnp.array(k_index)), block(table)
    )
    weights = jax.random.normal(jax.random.key(1), (1, 3, t, s))
    want = jax.grad(lambda table: (direct(table) * weights).sum())(table)
    got = jax.grad(lambda table: (block(table) * weights).sum())(table)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_biases_follow_a_traced_offset():
    table = jax.random.normal(jax.random.key(0), (8, 2))
    for make in (
        lambda offset: alibi(2, offset=offset),
        lambda offset: t5_relative_bias(table, bidirectional=False, offset=offset),
    ):
        whole = make(0).block(range(6), range(6))
        last = jax.jit(lambda i, make=make: make(i).block(range(1), range(6)))(jnp.int32(5))
        np.testing.assert_allclose(last, whole[:, :, 5:], rtol=1e-6)
