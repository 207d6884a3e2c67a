"""Time and memory of dense against chunked attention, forward and backward, over the length.

    python -m tests.benchmarks.attention [--max-length 16384] [--batch 1] [--heads 4]

Both are compared with each other first. Memory is what the compiled program asks for beyond its
inputs and outputs. Dense attention is skipped where it would need more than `--dense-limit` GiB.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks
from jaxformer.ops.attention import attention

GIB = 2**30


class Row(NamedTuple):
    length: int
    backend: str
    seconds: float
    bytes: int


def inputs(length: int, batch: int, heads: int, width: int, dtype: str) -> list[jax.Array]:
    return [
        jax.random.normal(jax.random.key(i), (batch, length, heads, width), dtype) for i in range(3)
    ]


@functools.partial(jax.jit, static_argnames="backend")
def step(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, backend: str):
    """Causal attention, and the gradients of the sum of its squares."""

    def loss(q, k, v):
        out = attention(q, k, v, mask=masks.causal(), backend=backend)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q_BTNH, k_BSKH, v_BSKH)
    return out, *gradients


def check(arrays: list[jax.Array], tolerance: float) -> float:
    """Returns the largest relative difference of the backends; raises when it is too large."""
    worst = 0.0
    for a, b in zip(step(*arrays, "dense"), step(*arrays, "chunked"), strict=True):
        a, b = (np.asarray(x.astype(jnp.float32)) for x in (a, b))
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    if worst > tolerance:
        raise SystemExit(f"dense and chunked differ by {worst:.1e}: there is nothing to time")
    return worst


def measure(length: int, backends: list[str], arguments: argparse.Namespace) -> list[Row]:
    """Times the backends in turn, so that a busy machine disturbs them alike."""
    arrays = inputs(length, arguments.batch, arguments.heads, arguments.head_dim, arguments.dtype)
    compiled, memory = {}, {}
    for backend in backends:
        compiled[backend] = step.lower(*arrays, backend).compile()
        memory[backend] = compiled[backend].memory_analysis().temp_size_in_bytes
        if memory[backend] > arguments.dense_limit * GIB:
            del compiled[backend]
            continue
        jax.block_until_ready(compiled[backend](*arrays))
    seconds: dict[str, list[float]] = {backend: [] for backend in compiled}
    for _ in range(arguments.repeats):
        for backend, fn in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(fn(*arrays))
            seconds[backend].append(time.perf_counter() - start)
    return [
        Row(length, b, statistics.median(seconds.get(b) or [math.nan]), memory[b]) for b in backends
    ]


def slope(rows: list[Row]) -> float:
    """The exponent p of the fit bytes = c * length^p: 1 is linear."""
    x, y = np.log([row.length for row in rows]), np.log([row.bytes for row in rows])
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-length", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense-limit", type=float, default=6.0, help="GiB")
    arguments = parser.parse_args()

    a = arguments
    print(
        f"causal attention, forward and backward, {a.dtype}, batch {a.batch}, {a.heads} heads of "
        f"{a.head_dim}; jax {jax.__version__}, {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} cores; medians of {a.repeats}"
    )
    tolerance = 1e-4 if a.dtype == "float32" else 2e-2
    difference = check(inputs(777, a.batch, a.heads, a.head_dim, a.dtype), tolerance)
    print(f"dense and chunked agree to {difference:.1e} (length 777)\n")
    print(
        f"{'length':>7} {'dense ms':>10} {'chunked ms':>11} {'dense MiB':>10} {'chunked MiB':>12}"
    )
    rows: dict[str, list[Row]] = {"dense": [], "chunked": []}
    length = 512
    while length <= a.max_length:
        for row in measure(length, list(rows), a):
            rows[row.backend].append(row)
        dense, chunked = rows["dense"][-1], rows["chunked"][-1]
        print(
            f"{length:>7} {1e3 * dense.seconds:>10.1f} {1e3 * chunked.seconds:>11.1f} "
            f"{dense.bytes / 2**20:>10.1f} {chunked.bytes / 2**20:>12.1f}",
            flush=True,
        )
        length *= 2
    print("\nnan: not run, for it needs more memory than --dense-limit")
    if len(rows["dense"]) > 1:
        for backend, measured in rows.items():
            # From the longer half of the lengths: below, blocks of constant size still count.
            longer = measured[len(measured) // 2 :] if len(measured) > 3 else measured
            print(f"memory of {backend} grows as length^{slope(longer):.2f}")


if __name__ == "__main__":
    main()
