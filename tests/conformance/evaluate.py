"""A variant's values and gradients, compiled once for each kind of mask, and their truth.

The sum of out times a probe, drawn once, is what gradients are taken of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.conformance.case import Case
from tests.conformance.variant import Variant


def attend(variant: Variant, arrays: Any, own: Any, mask: Any, offset: Any = 0) -> Any:
    return variant.call(*arrays, mask=mask, offset=offset, **own, **variant.static)


def floats_of(own: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in own.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def gradients(attend: Callable[..., Any], arrays, own, mask, probe, offset: int = 0) -> Any:
    """Returns (out, gradients by q, k, v and the variant's own floats)."""

    def run(arrays, floats):
        return attend(arrays, {**own, **floats}, mask, offset)

    out, back = jax.vjp(run, arrays, floats_of(own))
    return out, back(probe.astype(out.dtype))


def values(variant: Variant) -> Any:
    """Returns jitted `attend`: (arrays, own, mask, offset=0) -> out.

    Masks are arguments, so that those of one kind share a program.
    """
    return _jitted(variant, "values", functools.partial(attend, variant))


def with_gradients(variant: Variant) -> Any:
    """Returns jitted `gradients`: (arrays, own, mask, probe) -> (out, gradients)."""
    run = functools.partial(gradients, functools.partial(attend, variant))
    return _jitted(variant, "gradients", run)


def _jitted(variant: Variant, what: str, run: Callable[..., Any]) -> Any:
    if (variant.name, what) not in _programs:
        _programs[variant.name, what] = jax.jit(run, static_argnames="offset")
    return _programs[variant.name, what]


_programs: dict[tuple[str, str], Any] = {}


def probe_of(case: Case) -> jax.Array:
    rng = np.random.default_rng(7)
    return jnp.asarray(rng.standard_normal((case.B, case.T, case.N, case.H)), jnp.float32)


def true_values(variant: Variant, arrays: Any, own: Any, case: Case, **sizes: Any) -> np.ndarray:
    """Returns the reference in float64, by numpy."""
    q, k, v = (_float64(x) for x in arrays)
    own = {
        name: _float64(x) if name in floats_of(own) else np.asarray(x) for name, x in own.items()
    }
    return variant.reference(np, q, k, v, case, **own, **{**variant.static, **sizes})


def true_gradients(variant: Variant, arrays: Any, own: Any, case: Case) -> Any:
    """Returns the reference's gradients in float64, by jax.grad of the same formula."""
    floats = {name: _float64(x) for name, x in floats_of(own).items()}
    others = {name: np.asarray(x) for name, x in own.items() if name not in floats}
    probe = _float64(probe_of(case))

    def run(arrays, floats):
        out = variant.reference(jnp, *arrays, case, **floats, **others, **variant.static)
        return (out * probe).sum()

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(run, argnums=(0, 1)))([_float64(x) for x in arrays], floats)
        return jax.tree.map(np.asarray, found)


def _float64(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)
