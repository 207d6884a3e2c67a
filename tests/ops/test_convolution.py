"""The short convolution against torch's, by segments, and step by step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops

RNG = np.random.default_rng(0)
X = jnp.array(RNG.standard_normal((2, 9, 5)), jnp.float32)
KERNEL = jnp.array(RNG.standard_normal((4, 5)), jnp.float32)


def test_equals_torch_with_gradients():
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.asarray(X), requires_grad=True)
    kernel = torch.tensor(np.asarray(KERNEL), requires_grad=True)
    # torch's filter runs from the oldest input to the present.
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    out = torch.nn.functional.conv1d(padded, kernel.flip(0).T[:, None], groups=5).transpose(1, 2)
    (out**2).sum().backward()
    loss = lambda x, kernel: jnp.sum(ops.short_conv(x, kernel) ** 2)  # noqa: E731
    dx, dkernel = jax.grad(loss, argnums=(0, 1))(X, KERNEL)
    np.testing.assert_allclose(ops.short_conv(X, KERNEL), out.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, x.grad, atol=1e-4)
    np.testing.assert_allclose(dkernel, kernel.grad, atol=1e-4)


def test_segments_equal_separate_texts():
    segment_ids = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]] * 2)
    out = ops.short_conv(X, KERNEL, segment_ids_BT=segment_ids)
    np.testing.assert_allclose(out[:, :4], ops.short_conv(X[:, :4], KERNEL), atol=1e-6)
    np.testing.assert_allclose(out[:, 4:7], ops.short_conv(X[:, 4:7], KERNEL), atol=1e-6)
    assert (out[:, 7:] == 0).all()


def test_a_history_continues_the_text():
    whole = ops.short_conv(X, KERNEL)
    out = ops.short_conv(X[:, 5:], KERNEL, history_BPD=X[:, 2:5])
    np.testing.assert_allclose(out, whole[:, 5:], atol=1e-6)


def test_bad_shapes():
    with pytest.raises(ValueError, match="does not fit kernel"):
        ops.short_conv(X, KERNEL[:, :3])
    with pytest.raises(ValueError, match="a history of 2, not 3"):
        ops.short_conv(X, KERNEL, history_BPD=X[:, :2])
