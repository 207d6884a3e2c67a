"""Activations and feed-forward layers are those of torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.ffn import ACTIVATIONS, feed_forward, gated_feed_forward

D, F = 6, 10
X = jax.random.normal(jax.random.key(0), (2, 3, D))
W_IN, W_UP = jax.random.normal(jax.random.key(1), (2, D, F))
W_OUT = jax.random.normal(jax.random.key(2), (F, D))
B_IN, B_OUT = jnp.linspace(-1, 1, F), jnp.linspace(0, 1, D)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    theirs = {
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu2": lambda x: functional.relu(x) ** 2,
        "identity": lambda x: x,
    }
    points = jnp.linspace(-6, 6, 101)
    x = torch.tensor(np.asarray(points, np.float64), requires_grad=True)
    want = theirs.get(name, getattr(functional, name, None))(x)
    want.sum().backward()
    np.testing.assert_allclose(
        ACTIVATIONS[name](points), want.detach().numpy(), atol=2e-6, rtol=1e-6
    )
    slope = jax.grad(lambda x: ACTIVATIONS[name](x).sum())(points)
    off_the_kink = np.abs(points) > 1e-6
    np.testing.assert_allclose(slope[off_the_kink], x.grad.numpy()[off_the_kink], atol=5e-6)


def test_feed_forward_is_two_linear_maps():
    want = np.maximum(np.asarray(X) @ W_IN + B_IN, 0) @ W_OUT + B_OUT
    got = feed_forward(X, W_IN, W_OUT, b_in=B_IN, b_out=B_OUT, activation="relu")
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert feed_forward(X.astype(jnp.bfloat16), W_IN, W_OUT).dtype == jnp.bfloat16


def test_gated_feed_forward_is_swiglu():
    torch = pytest.importorskip("torch")
    x, gate, up, down = (torch.tensor(np.asarray(a)) for a in (X, W_IN, W_UP, W_OUT))
    want = (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down
    np.testing.assert_allclose(gated_feed_forward(X, W_IN, W_UP, W_OUT), want.numpy(), atol=2e-5)
    bilinear = gated_feed_forward(X, W_IN, W_UP, W_OUT, b_gate=B_IN, activation="identity")
    want = ((np.asarray(X) @ W_IN + B_IN) * (np.asarray(X) @ W_UP)) @ W_OUT
    np.testing.assert_allclose(bilinear, want, atol=2e-5)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'swish' is not one of relu"):
        feed_forward(X, W_IN, W_OUT, activation="swish")
