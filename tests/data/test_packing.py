"""Pieces fill rows without overlap, and with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.packing import pack, pieces, ramp


def test_ramp():
    np.testing.assert_array_equal(ramp(np.array([3, 0, 2])), [0, 1, 2, 0, 1])


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=200))
def test_pack_overflows_no_row_and_overlaps_nothing(lengths):
    lengths = np.array(lengths)
    row, column = pack(lengths, 16)
    filled = np.zeros((row.max() + 1, 16), int)
    for r, c, length in zip(row, column, lengths):
        filled[r, c : c + length] += 1
        assert c + length <= 16
    assert filled.max() == 1
    assert filled.sum() == lengths.sum()
    # No two rows could be joined: no more than one is half empty.
    assert (filled.sum(1) <= 8).sum() <= 1
    first = [np.flatnonzero(row == r)[0] for r in range(len(filled))]
    assert first == sorted(first)


def test_pack_wastes_little_of_natural_lengths():
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000).astype(int).clip(1, 256)
    row, _ = pack(lengths, 256)
    assert lengths.sum() / ((row.max() + 1) * 256) > 0.99


def test_pieces_of_nothing():
    assert all(len(part) == 0 for part in pieces(np.array([0]), 4))
