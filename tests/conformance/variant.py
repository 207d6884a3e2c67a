"""A row of the matrix: how a variant is called, what it must equal, and what it cannot do."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.conformance.case import Case


def nothing_of_its_own(rng: np.random.Generator, case: Case, **static: Any) -> dict[str, Any]:
    return {}


def queries_keys_values(rng: np.random.Generator, case: Case, **static: Any) -> list[np.ndarray]:
    shapes = [(case.B, n, h, case.H) for n, h in ((case.T, case.N), (case.S, case.K))]
    return [rng.standard_normal(s).astype(np.float32) for s in (shapes[0], shapes[1], shapes[1])]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to attend.

    Attributes:
      name: of the row.
      call: (q, k, v, *, mask, offset, **own, **static) -> out_BTNH.
      reference: (xp, q, k, v, case, **own, **static) -> the same by the definition, all pairs at
        once, in numpy or (for gradients) jax.numpy, float64.
      static: sizes, such as a window's.
      sizes: name -> (least, most) of those that hypothesis draws.
      own: (rng, case, **static) -> the variant's own arrays.
      inputs: likewise q, k and v, where keys have another shape.
      per_row: names of own arrays whose first axis is the batch.
      per_query: names of those whose second axis is the queries.
      exact: softmax attention with a mask, and no approximation of it.
      pairs: heads come in pairs.
      causal: "either", "always", "never" or "built in"; see `case_for`.
      keys: S where a cell leaves it open.
      cannot: cell -> why, in one phrase; then the call must raise ValueError.
      decode: (q, k, v, own, static) -> out, token by token, where that is not by a cache.
      tolerance: absolute, in float32, of values; ten times that of gradients' largest.
      bf16: relative, of norms, in bf16.
      linear: the cost it claims grows in proportion to T; `long` are the sizes to try that with.
    """

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any]
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    own: Callable[..., dict[str, Any]] = nothing_of_its_own
    inputs: Callable[..., list[np.ndarray]] = queries_keys_values
    per_row: tuple[str, ...] = ()
    per_query: tuple[str, ...] = ()
    exact: bool = True
    pairs: bool = False
    causal: str = "either"
    keys: int = 20
    cannot: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decode: Callable[..., Any] | None = None
    tolerance: float = 1e-5
    bf16: float = 0.02
    linear: bool = False
    long: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def draw(self, case: Case, seed: int = 0, **static: Any) -> tuple[list[Any], dict[str, Any]]:
        """Returns ([q, k, v], own arrays), float32, which a seed and the variant's name decide."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        static = {**self.static, **static}
        arrays = self.inputs(rng, case, **static)
        return [jnp.asarray(x) for x in arrays], {
            name: jnp.asarray(x) for name, x in self.own(rng, case, **static).items()
        }
