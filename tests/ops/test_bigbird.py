"""BigBird's attention is a dense mask in which some keys count twice, and is transformers'."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.bigbird import bigbird
from tests.ops import reference
from tests.ops.sparse_truth import check, inputs, largest_of, mask_of, rand

N = 4


def plan(inner, R, seed=0):
    """Random blocks among all and none (-1), so that some repeat what is seen anyway."""
    return np.random.default_rng(seed).integers(-1, inner + 1, (N, inner, R)).astype(np.int32)


def counts(T, block, drawn, *, causal=False, repeat_first=0):
    """int [N, T, T]: how often a query sees a key, row by row as the paper's figure draws it."""
    number = -(-T // block)
    of_blocks = np.zeros((N, number, number), int)
    ends = {0} if causal else {0, number - 1}
    for head in range(N):
        for row in range(number):
            if row in ends:
                of_blocks[head, row] = 1
                continue
            near = {row - 1, row, row + 1} | ends
            of_blocks[head, row, [b for b in near if 0 <= b < number]] = 1
            of_blocks[head, row, 0] += repeat_first
            for b in drawn[head, row - 1]:
                of_blocks[head, row, b] += b >= 0
    return np.kron(of_blocks, np.ones((1, block, block), int))[:, :T, :T]


CASES = {
    "none": ("none", 20, 0),
    "a short last block": ("none", 35, 0),
    "segments": ("segments", 35, 0),
    "causal": ("causal", 35, 0),
    "lengths": ("lengths", 22, 2),
    "explicit": ("explicit", 24, 0),
    "global blocks alone": ("none", 7, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_dense_mask(case):
    name, T, repeat_first = CASES[case]
    mask, causal = mask_of(name, T), name in ("causal", "segments")
    drawn = plan(-(-T // 4) - (1 if causal else 2), 2)
    times = counts(T, 4, drawn, causal=causal, repeat_first=repeat_first)
    seen = times > 0 if mask is None else (times > 0) & np.asarray(masks.materialise(mask, T, T))

    def f(q, k, v):
        given = {"block": 4, "random_NIR": jnp.asarray(drawn), "repeat_first": repeat_first}
        out = bigbird(q, k, v, mask=mask, soft_cap=3.0, **given)
        # Weights come from the dense form; the output and its gradients from the sparse one.
        return out, bigbird(q, k, v, mask=mask, soft_cap=3.0, return_weights=True, **given)[1]

    check(f, inputs(T), seen, soft_cap=3.0, counts=times)


def test_a_bias_array_gets_its_gradient():
    T, drawn = 22, plan(4, 2)
    given = {"block": 4, "random_NIR": jnp.asarray(drawn), "repeat_first": 1}

    def f(q, k, v, bias):
        out = bigbird(q, k, v, bias=bias, **given)
        return out, bigbird(q, k, v, bias=bias, return_weights=True, **given)[1]

    times = counts(T, 4, drawn, repeat_first=1)
    check(f, inputs(T), times > 0, bias=rand(3, 1, N, T, T), counts=times)


def test_decoding_over_a_cache_gives_the_rows_of_the_whole():
    q, k, v = inputs(22)
    given = {"block": 4, "random_NIR": jnp.asarray(plan(5, 1))}
    whole = bigbird(q, k, v, mask=masks.causal(), **given)

    @jax.jit
    def row(t):
        at = jax.lax.dynamic_slice_in_dim(q, t, 1, 1)
        return bigbird(at, k, v, mask=masks.causal(t), offset=t, **given)

    for t in (1, 9, 21):
        np.testing.assert_allclose(row(t)[:, 0], whole[:, t], atol=1e-5)


def test_no_array_of_queries_by_keys_is_made():
    drawn = jnp.zeros((2, 248, 3), jnp.int32)
    f = functools.partial(bigbird, block=16, random_NIR=drawn)
    assert largest_of(f, 4000) < 4000 * 4000 / 25


def test_mistakes_and_half_precision():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(24))
    assert bigbird(q, k, v, block=4).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"N, I = \(4, 4\)"):
        bigbird(q, k, v, block=4, random_NIR=jnp.asarray(plan(5, 1)))
    with pytest.raises(ValueError, match="block must be >= 1"):
        bigbird(q, k, v, block=0)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_that_of_transformers(training):
    torch = pytest.importorskip("torch")
    T, block, R = 24, 2, 2
    config = pytest.importorskip("transformers").BigBirdConfig(
        hidden_size=24, num_attention_heads=3, block_size=block, num_random_blocks=R,
        max_position_embeddings=64, use_bias=False,
    )  # fmt: skip
    from transformers.models.big_bird import modeling_big_bird as theirs

    torch.manual_seed(0)
    module = theirs.BigBirdBlockSparseAttention(config, seed=5).double().train(training)
    x = torch.randn(2, T, 24, dtype=torch.float64)
    real = torch.ones(2, T, dtype=torch.float64)
    real[1, 15:] = 0
    blocked, band, rows, keys = theirs.BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    their_out = module(x, band, rows, keys, blocked, blocked)[0]
    to_out = torch.randn(2, T, 24, dtype=torch.float64)
    (their_out * to_out).sum().backward()

    given = {"repeat_first": R}  # out of training every random block is block 0, counted again
    if training:
        lengths, numbers = module._get_rand_attn_plan(T, block, R)
        np.random.seed(5)
        drawn = module._bigbird_block_rand_mask_with_head(T, T, block, block, 3, lengths, numbers)
        given = {"random_NIR": jnp.asarray(np.stack(drawn), jnp.int32)}
    layers = [module.query, module.key, module.value]
    weights = [jnp.asarray(layer.weight.detach().numpy(), jnp.float32) for layer in layers]
    ids = jnp.asarray(real.numpy()).astype(jnp.int32)

    def ours(weights):
        x_BTD = jnp.asarray(x.numpy(), jnp.float32)
        q, k, v = ((x_BTD @ w.T).reshape(2, T, 3, 8) for w in weights)
        out = bigbird(q, k, v, block=block, mask=masks.segments(ids), **given).reshape(2, T, 24)
        return (out * jnp.asarray(to_out.numpy())).sum(), out

    (_, out), got = jax.jit(jax.value_and_grad(ours, has_aux=True))(weights)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=1e-5)
    for a, layer in zip(got, layers, strict=True):
        np.testing.assert_allclose(a, layer.weight.grad.numpy(), atol=1e-4)


def test_repeating_the_first_block_is_drawing_it():
    q, k, v = inputs(28)
    got = bigbird(q, k, v, block=4, repeat_first=2)
    want = bigbird(q, k, v, block=4, random_NIR=jnp.zeros((N, 5, 2), jnp.int32))
    np.testing.assert_allclose(got, want, atol=1e-5)
    once, _ = reference.attention(q, k, v, counts(28, 4, plan(5, 0)) > 0)
    assert np.abs(np.asarray(got) - once).max() > 1e-3
