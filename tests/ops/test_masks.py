"""Masks say what their rule says, block by block, and skip only what is surely masked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.ops import masks

T, S = 6, 9
Q_SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
K_SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 2, 2, 0, 0, 0, 0, 1]])
ARRAY = np.random.default_rng(0).random((2, 1, T, S)) < 0.5

# Each mask beside its rule for batch row b, query t and key s.
RULES = {
    "causal": (masks.causal(), lambda b, t, s: s <= t),
    "causal with offset": (masks.causal(3), lambda b, t, s: s <= t + 3),
    "causal before the keys": (masks.causal(-2), lambda b, t, s: s <= t - 2),
    "window": (masks.window(2), lambda b, t, s: t - 2 <= s <= t),
    "window to both sides": (
        masks.window(1, 2, offset=3),
        lambda b, t, s: t + 3 - 1 <= s <= t + 3 + 2,
    ),
    "prefix": (masks.prefix(jnp.array([0, 4])), lambda b, t, s: s <= t or s < (0, 4)[b]),
    "lengths": (masks.lengths(jnp.array([0, 5])), lambda b, t, s: s < (0, 5)[b]),
    "segments": (
        masks.segments(jnp.array(Q_SEGMENTS), jnp.array(K_SEGMENTS)),
        lambda b, t, s: Q_SEGMENTS[b, t] == K_SEGMENTS[b, s] != 0,
    ),
    "explicit": (masks.explicit(jnp.array(ARRAY)), lambda b, t, s: ARRAY[b, 0, t, s]),
    "explicit, one row for all": (
        masks.explicit(jnp.array(ARRAY[0, 0, 0])),
        lambda b, t, s: ARRAY[0, 0, 0, s],
    ),
    "two together": (
        masks.causal(1) & masks.lengths(jnp.array([2, 5])),
        lambda b, t, s: s <= t + 1 and s < (2, 5)[b],
    ),
}


def whole(mask, num_queries=T, num_keys=S):
    array = np.asarray(masks.materialise(mask, num_queries, num_keys))
    return np.broadcast_to(array, (2, 1, num_queries, num_keys))


@pytest.mark.parametrize("name", RULES)
def test_mask_is_its_rule(name):
    mask, rule = RULES[name]
    want = [[[[rule(b, t, s) for s in range(S)] for t in range(T)]] for b in range(2)]
    np.testing.assert_array_equal(whole(mask), want)


@pytest.mark.parametrize("name", RULES)
def test_a_block_is_a_piece_of_the_whole(name):
    mask, _ = RULES[name]
    piece = np.broadcast_to(mask.block(range(2, 5), range(3, 7)), (2, 1, 3, 4))
    np.testing.assert_array_equal(piece, whole(mask)[:, :, 2:5, 3:7])
    traced = mask.block(jnp.arange(2, 5), jnp.arange(3, 7))
    np.testing.assert_array_equal(np.broadcast_to(traced, (2, 1, 3, 4)), piece)


@pytest.mark.parametrize("name", RULES)
def test_padding_changes_nothing_and_hides_what_is_new(name):
    mask, _ = RULES[name]
    padded = whole(mask.padded(T + 2, S + 3), T + 2, S + 3)
    np.testing.assert_array_equal(padded[:, :, :T, :S], whole(mask))
    if name.startswith("segments"):
        assert not padded[:, :, T:].any() and not padded[:, :, :, S:].any()


@given(
    offset=st.integers(-12, 12),
    left=st.integers(0, 5),
    right=st.integers(0, 5),
    start=st.integers(0, T - 1),
    length=st.integers(1, T),
)
@settings(max_examples=60, deadline=None)
def test_key_range_covers_all_that_is_visible(offset, left, right, start, length):
    stop = min(start + length, T)
    for mask in (
        masks.causal(offset),
        masks.window(left, right, offset),
        masks.causal() & masks.window(left, right, offset),
        masks.causal(offset) & masks.lengths(jnp.array([3, 9])),
    ):
        lo, hi = masks.key_range(mask, start, stop, S)
        visible = np.asarray(whole(mask)[:, :, start:stop].any(axis=(0, 1, 2)).nonzero()[0])
        assert 0 <= lo <= hi <= S
        assert all(lo <= s < hi for s in visible)


def test_key_range_is_tight_for_static_masks():
    assert masks.key_range(masks.causal(), 0, 2, S) == (0, 2)
    assert masks.key_range(masks.window(1, 1), 4, 5, S) == (3, 6)
    assert masks.key_range(masks.causal() & masks.window(2), 4, 6, S) == (2, 6)
    assert masks.key_range(None, 4, 6, S) == (0, S)
    assert masks.key_range(masks.causal(jnp.int32(1)), 0, 2, S) == (0, S)


def test_a_static_offset_stays_static_under_jit_and_an_array_is_traced():
    seen = []

    @jax.jit
    def block(mask):
        seen.append(masks.key_range(mask, 0, 1, S))
        return masks.materialise(mask, T, S)

    np.testing.assert_array_equal(block(masks.causal(2)), masks.materialise(masks.causal(2), T, S))
    np.testing.assert_array_equal(
        block(masks.causal(jnp.int32(2))), masks.materialise(masks.causal(2), T, S)
    )
    assert seen == [(0, 3), (0, S)]
    block(masks.causal(jnp.int32(3)))
    assert len(seen) == 2  # another index, the same program


def test_masks_pass_through_vmap():
    lengths = jnp.array([[1], [4]])
    got = jax.vmap(lambda n: masks.materialise(masks.lengths(n) & masks.causal(), T, S))(lengths)
    for one, length in zip(got, lengths, strict=True):
        both = masks.lengths(length) & masks.causal()
        np.testing.assert_array_equal(one, masks.materialise(both, T, S))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="boolean"):
        masks.explicit(jnp.zeros((T, S)))
    with pytest.raises(ValueError, match=">= 0"):
        masks.window(-1)
    with pytest.raises(TypeError):
        masks.causal() & True
