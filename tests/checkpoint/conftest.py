"""A tiny training state with every kind of leaf, and what the checkpoint tests do with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

RUN = {"model": {"width": 4, "widths": (4, 5)}, "train": {"steps": 100}, "mesh": {"data": 1}}


def make_state(seed: int = 0, ema: bool = True) -> dict:
    """float32 and bf16 matrices, a scalar, NamedTuples, an empty state, int32 counters, a bool.

    The table has more than 1 kB: smaller arrays lie inside Orbax's index, which has checksums.
    """
    key = jax.random.key(seed)
    params = {
        "embed": {"table": jax.random.normal(jax.random.fold_in(key, 1), (32, 16))},
        "blocks": {
            "w": jax.random.normal(jax.random.fold_in(key, 2), (2, 8, 16), jnp.bfloat16),
            "scale": jnp.float32(seed + 0.5),
        },
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": optimizer.init(params),
        "skipped": jnp.array([True, False]),
    }
    return state | ({"ema": jax.tree.map(lambda x: x + 1, params)} if ema else {})


def same(a, b) -> bool:
    """Whether two trees are equal in structure, dtypes and every bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.fixture(scope="session")
def states() -> list[dict]:
    return [make_state(seed) for seed in range(5)]
