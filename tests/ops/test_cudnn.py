"""What cuDNN is asked to do is only what it can; the kernel itself needs a GPU to test."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention import attention, cudnn

T = 8
LENGTHS = masks.lengths(jnp.array([0, 5]))


@pytest.mark.parametrize(
    "mask, is_causal, window",
    [
        (None, False, None),
        (masks.causal(), True, None),
        (masks.window(3), True, (3, 0)),
        (masks.causal() & masks.window(3, 2), True, (3, 0)),
        (LENGTHS, False, None),
        (LENGTHS & masks.causal(), True, None),
    ],
)
def test_expressible(mask, is_causal, window):
    got = cudnn.express(mask, T, T)
    assert isinstance(got, cudnn.Expressed)
    assert (got.is_causal, got.window) == (is_causal, window)


def test_two_lengths_are_the_shorter():
    got = cudnn.express(LENGTHS & masks.lengths(jnp.array([3, 3])), T, T)
    np.testing.assert_array_equal(got.kv_lengths_B, [0, 3])


@pytest.mark.parametrize(
    "mask, keys",
    [
        (masks.causal(2), T),
        (masks.causal(jnp.int32(0)), T),
        (masks.causal(), T + 1),
        (masks.window(3, 2), T),
        (masks.window(3) & LENGTHS, T),
        (masks.prefix(jnp.array([2, 2])), T),
        (masks.segments(jnp.ones((2, T), jnp.int32)) & masks.causal(), T),
        (masks.explicit(jnp.ones((T, T), bool)), T),
    ],
)
def test_not_expressible(mask, keys):
    assert isinstance(cudnn.express(mask, T, keys), str)


def test_why_not():
    def ask(dtype=jnp.bfloat16, head_dim=64, compute_capability=9.0, **more):
        q = jnp.zeros((2, T, 4, head_dim), dtype)
        asked = {
            "mask": masks.causal(), "bias": None, "soft_cap": None, "dropout_rate": 0.0,
            "return_weights": False,
        }  # fmt: skip
        return cudnn.why_not(q, q, **asked | more, compute_capability=compute_capability)

    assert ask() == ask(head_dim=256) == ask(dtype=jnp.float16) == ""
    assert "GPU" in ask(compute_capability=0.0) and "GPU" in ask(compute_capability=7.5)
    assert "float32" in ask(dtype=jnp.float32)
    assert "256" in ask(head_dim=256, compute_capability=8.0) and "60" in ask(head_dim=60)
    assert ask(bias=1) and ask(soft_cap=5.0) and ask(dropout_rate=0.1) and ask(return_weights=True)
    assert "segments" in ask(mask=masks.segments(jnp.ones((2, T), jnp.int32)))


@pytest.mark.skipif(cudnn.gpu_capability() > 0, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_auto_goes_on():
    q = jnp.ones((2, T, 4, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match="no NVIDIA GPU"):
        attention(q, q, q, backend="cudnn")
    assert attention(q, q, q).shape == q.shape


@pytest.mark.skipif(cudnn.gpu_capability() < 8.0, reason="needs an NVIDIA GPU")
def test_the_kernel_on_a_gpu():
    q = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, 4, 64)), jnp.bfloat16)
    for mask in (None, masks.causal(), masks.window(3), LENGTHS, LENGTHS & masks.causal()):
        want = attention(q, q, q, mask=mask, backend="dense").astype(jnp.float32)
        got = attention(q, q, q, mask=mask, backend="cudnn").astype(jnp.float32)
        np.testing.assert_allclose(got, want, atol=0.02)
        if mask is not None and isinstance(mask, masks.Lengths):
            assert (np.asarray(got)[0] == 0).all()
