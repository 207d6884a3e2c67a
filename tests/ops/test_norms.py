"""Norms are those of torch, with statistics in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.norms import layer_norm, rms_norm

X = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 16))
SCALE, BIAS = jax.random.normal(jax.random.key(1), (2, 16))


def both(torch_function, mine, arrays):
    """Compares values and gradients of a torch function and ours."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in arrays]
    want = torch_function(torch, *tensors)
    (want**3).sum().backward()
    got, backward = jax.vjp(mine, *arrays)
    np.testing.assert_allclose(got, want.detach().numpy(), atol=2e-6)
    for a, b in zip(backward(3 * got**2), tensors, strict=True):
        np.testing.assert_allclose(a, b.grad.numpy(), atol=2e-4, rtol=1e-4)


def test_layer_norm_is_torchs():
    both(
        lambda torch, x, w, b: torch.nn.functional.layer_norm(x, (16,), w, b, eps=1e-3),
        lambda x, w, b: layer_norm(x, w, b, eps=1e-3),
        (X, SCALE, BIAS),
    )


def test_rms_norm_is_torchs():
    both(
        lambda torch, x, w: torch.nn.functional.rms_norm(x, (16,), w, eps=1e-3),
        lambda x, w: rms_norm(x, w, eps=1e-3),
        (X, SCALE),
    )


def test_rms_norm_of_one_plus_weight():
    np.testing.assert_allclose(rms_norm(X, SCALE, offset=1.0), rms_norm(X, SCALE + 1), rtol=1e-6)
    np.testing.assert_allclose(rms_norm(X, jnp.zeros(16), offset=1.0), rms_norm(X), rtol=1e-6)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_statistics_do_not_overflow_or_drift_in_half_precision(norm):
    for dtype, scale in ((jnp.float16, 1000.0), (jnp.bfloat16, 1000.0)):
        got = norm((X * scale).astype(dtype), eps=1e-6)  # float16 squares overflow beyond 256
        assert got.dtype == dtype
        want = norm((X * scale).astype(dtype).astype(jnp.float32), eps=1e-6)
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=1e-2)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_zeros_have_finite_gradients(norm):
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(jnp.zeros((2, 4)))).all()
