"""Local attention is dense attention with a mask of blocks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention import block_local as module
from jaxformer.ops.attention.block_local import block_local
from tests.ops.sparse_truth import check, inputs, largest_of, mask_of


def blocks(T, S, *, block, look_back=0, offset=0):
    back = (np.arange(T)[:, None] + offset) // block - np.arange(S)[None, :] // block
    return (back >= 0) & (back <= look_back)


# name: (T, S, mask, the blocks)
CASES = {
    "last block short": (37, 37, "none", {"block": 8}),
    "causal": (37, 37, "causal", {"block": 8, "look_back": 1}),
    "several at once": (37, 37, "segments", {"block": 3, "look_back": 2}),
    "one block": (13, 13, "lengths", {"block": 50}),
    "an offset inside a block": (11, 29, "explicit", {"block": 4, "offset": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_dense_mask(case, monkeypatch):
    monkeypatch.setattr(module, "QUERY_CHUNK", 8)
    T, S, mask, local = CASES[case]
    spec = mask_of(mask, T, S, offset=local.get("offset", 0))
    seen = blocks(T, S, **local)
    seen = seen if spec is None else seen & np.asarray(masks.materialise(spec, T, S))
    f = functools.partial(block_local, mask=spec, soft_cap=3.0, return_weights=True, **local)
    check(f, inputs(T, S), seen, soft_cap=3.0)


def test_large_blocks(monkeypatch):
    monkeypatch.setattr(module, "LARGE_BLOCK", 4)
    f = functools.partial(block_local, block=9, mask=masks.causal(), return_weights=True)
    check(f, inputs(31), blocks(31, 31, block=9) & np.tri(31, dtype=bool))


def test_decoding_over_a_cache_gives_the_rows_of_the_whole():
    q, k, v = inputs(11)
    options = {"block": 4, "look_back": 1}
    whole = block_local(q, k, v, mask=masks.causal(), **options)

    @jax.jit
    def row(t):
        at = jax.lax.dynamic_slice_in_dim(q, t, 1, 1)
        return block_local(at, k, v, mask=masks.causal(t), offset=t, **options)

    for t in (0, 5, 10):
        np.testing.assert_allclose(row(t)[:, 0], whole[:, t], atol=1e-5)


@pytest.mark.parametrize("block", [16, 300])
def test_no_array_of_queries_by_keys_is_made(block):
    f = functools.partial(block_local, block=block, mask=masks.causal())
    assert largest_of(f, 4000) < 4000 * 4000 / 25


def test_half_precision_and_mistakes():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(12))
    assert block_local(q, k, v, block=5).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="block must be >= 1"):
        block_local(q, k, v, block=0)
