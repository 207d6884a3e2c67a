"""The order of rows: a permutation of every epoch, different for each, the same for equal seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data import order


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(count, key):
    got = order.permute(np.arange(count), count, np.full(count, key, np.uint64))
    assert sorted(got.tolist()) == list(range(count))


def test_permute_holds_for_counts_that_no_table_would():
    count = 10**12 + 39
    index = np.arange(count - 1000, count)
    got = order.permute(index, count, np.full(1000, 7, np.uint64))
    assert len(set(got.tolist())) == 1000
    assert got.min() >= 0
    assert got.max() < count


@pytest.mark.parametrize("count", [3, 10, 97])
def test_every_row_comes_equally_often_at_every_place(count):
    epochs = 3000
    keys = order.mix(np.arange(epochs, dtype=np.uint64))
    seen = np.zeros((count, count))
    for place in range(count):
        rows = order.permute(np.full(epochs, place), count, keys)
        seen[place] = np.bincount(rows, minlength=count)
    expected = epochs / count
    chi_square = ((seen - expected) ** 2 / expected).sum() / (count - 1) ** 2
    assert chi_square < 1 + 8 * np.sqrt(2) / (count - 1)  # mean 1, eight deviations


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 50),
    batch_size=st.integers(1, 16),
    seed=st.integers(-(2**40), 2**40),
    max_shift=st.integers(0, 9),
)
def test_an_epoch_has_every_row_once_and_one_shift(count, batch_size, seed, max_shift):
    places = np.arange(batch_size)
    steps = -(-3 * count // batch_size)
    drawn = [order.draw(s, batch_size, count, max_shift, seed, places) for s in range(steps)]
    rows = np.concatenate([rows for rows, _ in drawn])[: 3 * count].reshape(3, count)
    shifts = np.concatenate([shifts for _, shifts in drawn])[: 3 * count].reshape(3, count)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(count), (3, 1)))
    assert (shifts == shifts[:, :1]).all()
    assert ((shifts >= 0) & (shifts <= max_shift)).all()


def test_epochs_and_seeds_differ():
    def rows(step, seed):
        return order.draw(step, 100, 100, 0, seed, np.arange(100))[0].tolist()

    assert rows(0, 0) != rows(1, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(5, 3) == rows(5, 3)
