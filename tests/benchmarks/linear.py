"""Time and memory of the linear ways to attend over the length, forward and backward.

    python -m tests.benchmarks.linear [--max-length 32768] [--only performer,linformer]

Dense softmax attention stands beside them while it fits in `--dense-limit` GiB. Memory is what the
compiled program asks for beyond its inputs and outputs. All variants of a length are timed in turn,
so that a busy machine disturbs them alike; a slope of 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks
from jaxformer.ops.attention import attention
from jaxformer.ops.attention.linear_attention import linear_attention, retention_log_decay
from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.nystromformer import nystromformer
from jaxformer.ops.attention.performer import orthogonal_features, performer

GIB = 2**30
FIRST = 1024


class Row(NamedTuple):
    length: int
    seconds: float
    bytes: int


def variants(heads: int, width: int, features: int, dtype: str) -> dict[str, Callable]:
    """Returns functions of (q, k, v, gates_BTNH); gates are negative."""
    w = orthogonal_features(jax.random.key(9), features, width)
    causal = {"mask": masks.causal()}
    retention = retention_log_decay(heads)
    # Constants of this size would be copied into each program: broadcast rows serve as well.
    row = jax.random.normal(jax.random.key(8), (256,)) / 16
    filters = jnp.ones((heads, 33), dtype) / 33

    def projected(q, k, v, g):
        places = jnp.arange(k.shape[1], dtype=jnp.float32)[:, None]
        return linformer(q, k, v, keys_NLC=jnp.sin(places * row).astype(dtype) / 16)

    return {
        "dense": lambda q, k, v, g: attention(q, k, v, backend="dense"),
        "dense, causal": lambda q, k, v, g: attention(q, k, v, backend="dense", **causal),
        "linformer": projected,
        "nystromformer": lambda q, k, v, g: nystromformer(q, k, v, kernel_NW=filters),
        "performer": lambda q, k, v, g: performer(q, k, v, features_MH=w),
        "performer, causal": lambda q, k, v, g: performer(q, k, v, features_MH=w, **causal),
        "linear": lambda q, k, v, g: linear_attention(q, k, v),
        "linear, causal": lambda q, k, v, g: linear_attention(q, k, v, **causal),
        "retention": lambda q, k, v, g: linear_attention(
            q, k, v, log_decay=retention, kernel="identity", **causal
        ),
        "gates of heads": lambda q, k, v, g: linear_attention(
            q, k, v, log_decay=g[..., 0], kernel="identity", **causal
        ),
        "gates of channels": lambda q, k, v, g: linear_attention(
            q, k, v, log_decay=g, kernel="identity", **causal
        ),
    }


def compile_step(fn: Callable, shapes: list[jax.ShapeDtypeStruct], backward: bool):
    """Returns the compiled function, and the bytes it asks for."""

    def loss(*arrays):
        out = fn(*arrays)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    step = jax.grad(loss, argnums=(0, 1, 2), has_aux=True) if backward else fn
    compiled = jax.jit(step).lower(*shapes).compile()
    return compiled, compiled.memory_analysis().temp_size_in_bytes


def measure(length: int, named: dict[str, Callable], a: argparse.Namespace) -> dict[str, Row]:
    """Times all variants at one length in turn."""
    shape = (a.batch, length, a.heads, a.head_dim)
    shapes = [jax.ShapeDtypeStruct(shape, a.dtype)] * 3 + [jax.ShapeDtypeStruct(shape, "float32")]
    arrays = [jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(shapes)]
    arrays[3] = -jax.nn.softplus(arrays[3] - 2)
    compiled, memory, seconds = {}, {}, {}
    for name, fn in named.items():
        program, memory[name] = compile_step(fn, shapes, not a.forward)
        if memory[name] <= a.dense_limit * GIB:
            jax.block_until_ready(program(*arrays))
            compiled[name], seconds[name] = program, []
    for _ in range(a.repeats):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Row(length, statistics.median(seconds.get(name) or [math.nan]), memory[name])
        for name in named
    }


def slope(rows: list[Row], what: str) -> float:
    """The exponent p of the fit c * length^p of what could be run."""
    points = [(r.length, getattr(r, what)) for r in rows if not math.isnan(r.seconds)]
    if len(points) < 2:
        return math.nan
    x, y = np.log(np.array(points, float)).T
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-length", type=int, default=32768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forward", action="store_true", help="without gradients")
    parser.add_argument("--only", default="", help="variants, by comma")
    parser.add_argument("--dense-limit", type=float, default=6.0, help="GiB")
    a = parser.parse_args()

    named = variants(a.heads, a.head_dim, a.features, a.dtype)
    chosen = [name for name in named if not a.only or name.partition(",")[0] in a.only.split(",")]
    print(
        f"{'forward' if a.forward else 'forward and backward'}, {a.dtype}, batch {a.batch}, "
        f"{a.heads} heads of {a.head_dim}, {a.features} features; jax {jax.__version__}, "
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; medians of {a.repeats}\n"
    )
    rows: dict[str, list[Row]] = {name: [] for name in chosen}
    length = FIRST
    while length <= a.max_length:
        for name, row in measure(length, {name: named[name] for name in chosen}, a).items():
            rows[name].append(row)
        times = (f"{name} {1e3 * measured[-1].seconds:.0f}" for name, measured in rows.items())
        print(f"{length} tokens, ms: {'; '.join(times)}", flush=True)
        length *= 2
    print()
    lengths = [row.length for row in rows[chosen[0]]]
    for what, unit, factor in (("seconds", "ms", 1e3), ("bytes", "MiB", 2**-20)):
        print(f"{unit:<18}" + "".join(f"{n:>9}" for n in lengths) + f"{'slope':>8}")
        for name, measured in rows.items():
            cells = "".join(f"{factor * getattr(row, what):>9.1f}" for row in measured)
            print(f"{name:<18}{cells}{slope(measured, what):>8.2f}")
        print()
    print("nan: not run, for it needs more memory than --dense-limit; slopes are of what was run")


if __name__ == "__main__":
    main()
