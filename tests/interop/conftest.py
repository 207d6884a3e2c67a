"""Small models of the three first families, and checkpoints of them, made without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxformer import interop
from jaxformer.models import Model, decoder, encoder

V, D, N, L, F, P = 70, 24, 4, 3, 40, 16
_SIZES: dict[str, Any] = dict(vocab_size=V, width=D, num_heads=N, num_layers=L, feed_forward=F,
                              max_length=P)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    num_kv_heads=2, norm="rms_norm", norm_epsilon=1e-6, positions="rope", activation="silu",
    gated=True, bias=False, tie_embeddings=False,
)  # fmt: skip


def make_model(family: str, **keys: Any) -> Model:
    """Returns a small model; `keys` change its config."""
    if family == "bert":
        return encoder.make(encoder.Config(**{**_SIZES, "num_token_types": 2, **keys}))
    more = _LLAMA if family == "llama" else {}
    return decoder.make(decoder.Config(**{**_SIZES, **more, **keys}))


def random_params(model: Model, seed: int = 0) -> Any:
    """Returns random numbers for every parameter, norms and biases too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def equal(a: Any, b: Any) -> None:
    """Asserts that two trees hold the same arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Model, Any]]:
    """Makes a checkpoint: (family, **config) -> (its folder, the model, its parameters)."""

    def make(family: str, **keys: Any) -> tuple[Path, Model, Any]:
        model = make_model(family, **keys)
        params = random_params(model)
        folder = tmp_path / f"checkpoint_{family}"
        interop.save_huggingface(folder, model, params, model_type=family)
        return folder, model, params

    return make
