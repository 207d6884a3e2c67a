"""BERT's corruption: what is hidden, how often, and what is never touched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.objectives.masked_lm import Config, corrupt

V, MASK, SPECIAL = 50, 4, (0, 2, 3)
B, T = 64, 128


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, V, (B, T))
    tokens[:, 0], tokens[:, 20] = 2, 3  # [CLS], [SEP]
    lengths = rng.integers(30, T + 1, B)
    lengths[0] = 0
    segment_ids = (np.arange(T) < lengths[:, None]).astype(np.int32)
    tokens = np.where(segment_ids != 0, tokens, 0)
    return {
        "tokens": jnp.array(tokens, jnp.int32),
        "segment_ids": jnp.array(segment_ids),
        "rows": jnp.arange(B),
    }


def run(key=0, config=None, given=None):
    out = corrupt(
        given or batch(), jax.random.key(key), config or Config(),
        mask_id=MASK, special_ids=SPECIAL, vocab_size=V,
    )  # fmt: skip
    return [np.asarray(x) for x in out]


def test_only_ordinary_tokens_are_hidden_and_each_at_most_once():
    given = batch()
    _, where, labels, weights = run()
    for row in range(B):
        real = where[row][weights[row] > 0]
        assert len(set(real)) == len(real)
        assert (np.asarray(given["segment_ids"])[row, real] == 1).all()
        assert not np.isin(labels[row][weights[row] > 0], [MASK, *SPECIAL]).any()
    assert weights[0].sum() == 0  # a row of padding predicts nothing


def test_fifteen_percent_of_each_row():
    given = batch()
    allowed = ~np.isin(given["tokens"], [MASK, *SPECIAL]) & (np.asarray(given["segment_ids"]) != 0)
    n = allowed.sum(axis=1)
    expected = np.where(n > 0, np.maximum(np.round(0.15 * n), 1), 0)
    np.testing.assert_array_equal(run()[3].sum(axis=1), expected)


def test_eighty_ten_ten():
    tokens, where, labels, weights = (np.concatenate(x) for x in zip(*map(run, range(20))))
    new = np.take_along_axis(tokens, where, axis=1)[weights > 0]
    old = labels[weights > 0]
    n = len(old)
    # A random token is the old one in 1 of 46 cases; bounds are four standard deviations.
    for share, expected in (
        ((new == MASK).mean(), 0.8),
        ((new == old).mean(), 0.1 + 0.1 / 46),
        (((new != MASK) & (new != old)).mean(), 0.1 - 0.1 / 46),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    assert not np.isin(new[new != MASK], SPECIAL).any()


def test_the_rest_is_untouched():
    given = batch()
    tokens, where, _, weights = run()
    hidden = np.zeros((B, T), bool)
    for row in range(B):
        hidden[row, where[row][weights[row] > 0]] = True
    np.testing.assert_array_equal(tokens[~hidden], np.asarray(given["tokens"])[~hidden])


def test_dynamic_and_by_row():
    """Another step hides other tokens; a row hides the same whatever part of the batch it is in."""
    assert (run(0)[1] != run(1)[1]).any()
    given = batch()
    part = {name: x[16:32] for name, x in given.items()}
    for whole, alone in zip(run(), run(given=part)):
        np.testing.assert_array_equal(whole[16:32], alone)
