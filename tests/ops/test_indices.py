"""Places of a block: a range, a run from a traced start, or any places; all give the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks, positions

N, T, S = 2, 6, 8
IDS = jnp.array([[1, 1, 2, 2, 2, 0, 0, 0]])
SPECS = {
    "causal": masks.causal(1),
    "window": masks.window(1, 2),
    "either": masks.causal() & (masks.window(1) | masks.sinks(2)),
    "segments": masks.segments(IDS[:, :T], IDS),
    "explicit": masks.explicit(jax.random.bernoulli(jax.random.key(0), 0.5, (1, N, T, S))),
    "prefix": masks.prefix(jnp.array([3])),
    "alibi": positions.alibi(N),
    "t5": positions.t5_relative_bias(jax.random.normal(jax.random.key(1), (8, N))),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_block_is_the_same_however_its_places_are_given(name):
    spec = SPECS[name]
    whole = np.asarray(spec.block(range(T), range(S)))
    rows, keys = slice(2, 5), slice(1, 7)
    want = whole[..., rows, keys]
    traced = jax.jit(lambda i, j: spec.block(masks.Run(i, 3), masks.Run(j, 6)))(2, 1)
    np.testing.assert_array_equal(traced, want)
    gathered = spec.block(jnp.array([4, 2]), jnp.array([0, 7, 3]))
    np.testing.assert_array_equal(gathered, whole[..., [4, 2], :][..., [0, 7, 3]])
    strided = spec.block(range(1, T, 2), range(0, S, 3))
    np.testing.assert_array_equal(strided, whole[..., 1::2, ::3])


def test_either_sees_what_one_of_them_sees_and_knows_its_range():
    mask = masks.window(1) | masks.sinks(2)
    seen = np.asarray(masks.materialise(mask, T, S))[0, 0]
    want = [[s < 2 or t - 1 <= s <= t for s in range(S)] for t in range(T)]
    np.testing.assert_array_equal(seen, want)
    assert masks.key_range(mask, 4, 6, S) == (0, 6)
    assert masks.key_range(masks.window(1) | masks.window(0), 4, 6, S) == (3, 6)
    assert masks.key_range(masks.sinks(0) | masks.window(1), 4, 6, S) == (3, 6)
    padded = (masks.segments(IDS[:, :T], IDS) | masks.sinks(1)).padded(T + 2, S + 2)
    assert masks.materialise(padded, T + 2, S + 2).shape == (1, 1, T + 2, S + 2)


def test_parts_are_what_and_joined():
    a, b, c = masks.causal(), masks.sinks(1), masks.window(2)
    assert masks.parts(None) == [] and masks.parts(a) == [a]
    assert masks.parts((a & b) & c) == [a, b, c]
    either = b | c
    assert masks.parts(a & either) == [a, either]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=">= 0, not -1"):
        masks.sinks(-1)
