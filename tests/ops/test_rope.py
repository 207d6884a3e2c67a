"""RoPE turns as published, and every scaling gives the frequencies of its published code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops.rope import rope, rope_frequencies

H, BASE, LENGTH = 32, 10_000.0, 256
POSITIONS = jnp.array([[0, 1, 2, 9, 300], [5, 4, 3, 2, 1]])
X = jax.random.normal(jax.random.key(0), (2, 5, 3, H))


@pytest.mark.parametrize(
    "scaling, theirs, mine, theirs_at",
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}, {"factor": 4.0}, None),
        ("ntk", {"rope_type": "dynamic", "factor": 2.0}, {"factor": 2.0 * 3 - 1}, 3 * LENGTH),
        (
            "yarn",
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": LENGTH},
            {"factor": 8.0, "original_length": LENGTH},
            None,
        ),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": LENGTH,
            },
            {"factor": 8.0, "original_length": LENGTH},
            None,
        ),
    ],
)
def test_frequencies_are_those_of_transformers(scaling, theirs, mine, theirs_at):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=2 * H,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_theta": BASE, **theirs},
    )
    want, want_factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu", seq_len=theirs_at)
    got, factor = rope_frequencies(H, BASE, scaling=scaling, **mine)
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6)
    assert factor == pytest.approx(want_factor)
    plain, _ = rope_frequencies(H, BASE)
    assert np.abs(np.asarray(got) / plain - 1).max() > 0.5  # the scaling does something


def test_halves_turn_as_in_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    frequencies, _ = rope_frequencies(H, BASE)
    angles = np.asarray(POSITIONS)[..., None] * np.asarray(frequencies)
    both = torch.tensor(np.concatenate([angles, angles], axis=-1))
    x = torch.tensor(np.asarray(X)).transpose(1, 2)
    want, _ = apply_rotary_pos_emb(x, x, both.cos(), both.sin())
    np.testing.assert_allclose(
        rope(X, POSITIONS, frequencies), want.transpose(1, 2).numpy(), atol=2e-5
    )


def test_interleaved_turns_complex_numbers():
    frequencies, _ = rope_frequencies(H, BASE)
    x = np.asarray(X, np.float64)
    numbers = x[..., 0::2] + 1j * x[..., 1::2]
    angles = np.asarray(POSITIONS)[..., None, None] * np.asarray(frequencies, np.float64)
    turned = numbers * np.exp(1j * angles)
    got = np.asarray(rope(X, POSITIONS, frequencies, interleaved=True))
    np.testing.assert_allclose(got[..., 0::2] + 1j * got[..., 1::2], turned, atol=1e-4)
    # The two layouts are one rotation up to a permutation of the channels.
    order = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
    halves = rope(X[..., order], POSITIONS, frequencies)
    np.testing.assert_allclose(halves, got[..., order], atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_logits_depend_only_on_the_distance(interleaved):
    frequencies, _ = rope_frequencies(H, BASE)
    q, k = X[:1, :1], X[1:, :1]

    def logit(t, s):
        a, b = (
            rope(x, jnp.full((1, 1), p), frequencies, interleaved=interleaved)
            for x, p in ((q, t), (k, s))
        )
        return (a * b).sum()

    np.testing.assert_allclose(logit(7, 3), logit(107, 103), rtol=1e-4)
    assert abs(logit(7, 3) - logit(7, 4)) > 1e-3
    np.testing.assert_allclose(rope(X, 0 * POSITIONS, frequencies), X)


def test_partial_rotary_leaves_the_rest_and_keeps_the_dtype():
    frequencies, _ = rope_frequencies(H // 2, BASE)
    got = rope(X, POSITIONS, frequencies)
    np.testing.assert_array_equal(got[..., H // 2 :], X[..., H // 2 :])
    np.testing.assert_allclose(
        got[..., : H // 2], rope(X[..., : H // 2], POSITIONS, frequencies), atol=1e-6
    )
    assert rope(X.astype(jnp.bfloat16), POSITIONS, frequencies).dtype == jnp.bfloat16
    doubled = rope(X, POSITIONS, frequencies, attention_factor=2.0)[..., : H // 2]
    np.testing.assert_allclose(doubled, 2 * got[..., : H // 2], rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="even"):
        rope_frequencies(7)
    with pytest.raises(ValueError, match="not one of"):
        rope_frequencies(8, scaling="longer")
    with pytest.raises(ValueError, match="original_length"):
        rope_frequencies(8, scaling="yarn", factor=2.0)
    with pytest.raises(ValueError, match="factor"):
        rope_frequencies(8, scaling="linear", factor=0.5)
    with pytest.raises(ValueError, match="channels to turn"):
        rope(X, POSITIONS, jnp.ones(H))
