"""BigBird's random blocks are those of the published program, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer.modules.variants.bigbird_plan import PAPER_LENGTHS, blocks_before, random_blocks

# (length, block, random blocks, heads): two of the paper's lengths, and others.
CASES = [(1024, 64, 3, 4), (4096, 64, 3, 2), (2048, 64, 3, 3), (24, 2, 1, 2), (768, 64, 3, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_the_published_plan(case):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    (length, block, r, heads), longest, seed = case, 4096, 5
    config = transformers.BigBirdConfig(
        hidden_size=4 * heads, num_attention_heads=heads, max_position_embeddings=longest,
        block_size=block, num_random_blocks=r,
    )  # fmt: skip
    theirs = BigBirdBlockSparseAttention(config)
    theirs.train()  # in evaluation it draws nothing
    np.random.seed(seed)
    if length in PAPER_LENGTHS:
        plans = [
            theirs._bigbird_block_rand_mask(longest, longest, block, block, r, last_idx=1024)
            for _ in range(heads)
        ]
        want = np.stack(plans)[:, : length // block - 2]
    else:
        plan = theirs._get_rand_attn_plan(length, block, r)
        want = np.stack(
            theirs._bigbird_block_rand_mask_with_head(length, length, block, block, heads, *plan)
        )
    got = random_blocks(length, block, r, heads, seed, longest=longest)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_block_that_is_seen_anyway(case):
    length, block, r, heads = case
    if length in PAPER_LENGTHS:
        return  # the published program leaves the window out of the line's first part only
    plan = random_blocks(length, block, r, heads, 0, longest=4096)
    rows = np.arange(1, length // block - 1)[None, :, None]
    assert (abs(plan - rows) > 1).all() and (plan > 0).all()
    assert all(len(set(row)) == r for head in plan for row in head.tolist())
    assert (plan != random_blocks(length, block, r, heads, 1, longest=4096)).any()


def test_a_decoder_draws_of_what_lies_before_and_the_same_for_any_length():
    plan = blocks_before(40, 3, 4, 7)
    for row in range(1, 40):
        for head in plan[:, row - 1].tolist():
            real = [block for block in head if block >= 0]
            assert len(real) == min(3, max(row - 2, 0)) == len(set(real))
            assert all(1 <= block <= row - 2 for block in real)
    np.testing.assert_array_equal(blocks_before(11, 3, 4, 7), plan[:, :10])
    assert len(np.unique(plan[0, 20:])) > 10  # from the whole past
    assert (plan != blocks_before(40, 3, 4, 8)).any() and (plan[0] != plan[1]).any()
    assert blocks_before(1, 3, 4, 7).shape == (4, 0, 3)
