"""A stack of unlike layers runs as if each were run by hand, scanned by its pattern's period."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.models import decoder, encoder
from jaxformer.modules import stack

TOKENS = np.random.default_rng(0).integers(0, 30, (2, 12))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("aaaa", (0, 1)), ("abab", (0, 2)), ("aabaab", (0, 3)), ("aabaa", (3, 1)),
        ("aabaaba", (0, 3)), ("xaaa", (1, 1)), ("xbabab", (1, 2)), ("abc", (0, 3)), ("a", (0, 1)),
    ],
)  # fmt: skip
def test_the_period_is_found(kinds, expected):
    head, period = stack._repeats(tuple(kinds))
    assert (head, period) == expected
    assert all(kinds[i] == kinds[i + period] for i in range(head, len(kinds) - period))


def run(config, module=decoder):
    model = module.make(config)
    params = model.init(jax.random.key(0))

    def loss(params):
        out = model.apply(params, {"tokens": TOKENS}, return_hidden=True, return_attention=True)
        return jnp.sum(jnp.sin(out.hidden_BTD)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return out, grads


PATTERNED = decoder.Config(
    vocab_size=30, num_layers=7, width=8, num_heads=2, init_std=0.3, positions="rope",
    attention_pattern=("local", "local", "global"), window=3, rope_local_base=50.0,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [dict(unroll=1), dict(remat="full"), dict(unroll=2, remat="dots")]
)
def test_unrolling_and_remat_change_nothing(change):
    expected = run(PATTERNED)
    got = run(dataclasses.replace(PATTERNED, **change))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, expected)


def test_local_layers_see_their_window_only():
    out, _ = run(PATTERNED)
    index = np.arange(12)
    near = (index[:, None] - index >= 0) & (index[:, None] - index < 3)
    causal = index[:, None] >= index
    for layer, kind in enumerate(PATTERNED.layer_kinds):
        seen = np.asarray(out.attention_LBNTS[layer]).max(axis=(0, 1)) > 0
        assert (seen == (near if kind == "local" else causal)).all(), (layer, kind)


def test_shared_layers_equal_copies():
    shared = encoder.Config(
        vocab_size=30, num_layers=3, width=16, num_heads=4, share_layers=True, init_std=0.3
    )
    model = encoder.make(shared)
    params = model.init(jax.random.key(0))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["layers"])} == {1}
    copies = {
        **params, "layers": jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), params["layers"])
    }  # fmt: skip
    plain = encoder.make(dataclasses.replace(shared, share_layers=False))
    batch = {"tokens": TOKENS}
    ours, grad = jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply(p, batch).hidden_BTD)))(
        params
    )
    expected, grads = jax.value_and_grad(
        lambda p: jnp.sum(jnp.sin(plain.apply(p, batch).hidden_BTD))
    )(copies)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    jax.tree.map(
        lambda g, each: np.testing.assert_allclose(g[0], each.sum(axis=0), rtol=1e-3, atol=1e-4),
        grad["layers"],
        grads["layers"],
    )
