"""Sparse attention beside dense attention, transformers and torch's flex_attention on this CPU.

    python -m tests.benchmarks.sparse scaling [--max-length 32768]
    python -m tests.benchmarks.sparse torch [--length 4096]

Attention alone on both sides, without projections: transformers' modules get identity matrices in
their place. Both sides are compared first. They run in turn, so that a busy machine disturbs them
alike, each after a pause, in which the other's threads stop waiting for work; the times are
medians. --keep-memory: malloc keeps what is freed, as in jaxformer's commands, on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.attention import attention
from jaxformer.ops.attention.bigbird import bigbird
from jaxformer.ops.attention.block_local import block_local
from jaxformer.ops.attention.longformer import longformer
from jaxformer.ops.attention.sliding_window import sliding_window
from jaxformer.train.memory import keep_freed_memory

N, H = 8, 64
SIDE, GLOBAL, BLOCK, DRAWN = 256, 16, 64, 3
PAUSE = 0.3  # seconds


def inputs(length: int) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(i), (1, length, N, H)) for i in range(3)]


def plan(length: int) -> jax.Array:
    """Random blocks for each head and inner block, none of them in its window."""
    inner = length // BLOCK - 2
    draw = np.random.default_rng(0)
    rows = [
        [draw.choice([b for b in range(1, inner + 1) if abs(b - row) > 1], DRAWN, replace=False)
         for row in range(1, inner + 1)]
        for _ in range(N)
    ]  # fmt: skip
    return jnp.asarray(np.array(rows, np.int32))


def variants(length: int) -> dict[str, Callable[..., Any]]:
    is_global = jnp.arange(length)[None] < GLOBAL
    drawn = plan(length)
    return {
        "window": lambda q, k, v: sliding_window(q, k, v, left=SIDE, right=SIDE),
        "dilated": lambda q, k, v: sliding_window(q, k, v, left=SIDE, right=SIDE, dilation=4),
        "blocks": lambda q, k, v: block_local(q, k, v, block=SIDE, look_back=1),
        "longformer": lambda q, k, v: longformer(
            q, k, v, window=2 * SIDE, is_global_BS=is_global, max_global=GLOBAL
        ),
        "bigbird": lambda q, k, v: bigbird(q, k, v, block=BLOCK, random_NIR=drawn),
        "dense": attention,
    }


def step(f: Callable[..., Any]) -> Callable[..., Any]:
    """Forward, and the gradients of the sum of squares."""

    def loss(*arrays):
        out = f(*arrays)
        return jnp.square(out).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each, after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def scaling(arguments: argparse.Namespace) -> None:
    """Prints milliseconds and MiB over the length, forward and backward, and their exponents."""
    kinds = arguments.only.split(",")
    lengths, rows = [], []
    length = 1024
    print(f"{'length':>7}" + "".join(f"{kind + ' ms':>14}{'MiB':>8}" for kind in kinds))
    while length <= arguments.max_length:
        arrays = inputs(length)
        compiled = {
            kind: step(f).lower(*arrays).compile()
            for kind, f in variants(length).items()
            if kind in kinds and (kind != "dense" or length <= arguments.max_dense)
        }
        seconds = in_turn(
            {k: lambda f=f, a=arrays: jax.block_until_ready(f(*a)) for k, f in compiled.items()},
            arguments.repeats,
        )
        memory = {k: f.memory_analysis().temp_size_in_bytes for k, f in compiled.items()}
        lengths.append(length)
        rows.append([(seconds.get(k, np.nan), memory.get(k, np.nan)) for k in kinds])
        print(
            f"{length:>7}" + "".join(f"{1e3 * s:>14.1f}{b / 2**20:>8.0f}" for s, b in rows[-1]),
            flush=True,
        )
        length *= 2
    for at, kind in enumerate(kinds):
        values = np.array([row[at] for row in rows])
        known = np.isfinite(values[:, 0])
        x, y = np.log(np.array(lengths)[known]), np.log(values[known])
        if len(x) > 1:
            time_slope, memory_slope = (np.polyfit(x, y[:, i], 1)[0] for i in range(2))
            print(f"{kind}: time ~ length^{time_slope:.2f}, memory ~ length^{memory_slope:.2f}")


def theirs(name: str, arrays: list[jax.Array]) -> Any:
    """Returns torch's two programs for a variant: forward, and with backward (or None)."""
    import torch

    from tests.benchmarks import sparse_torch

    leaves = [torch.tensor(np.asarray(x)) for x in arrays]
    return getattr(sparse_torch, name)(leaves, plan=np.asarray(plan(arrays[0].shape[1])))


def beside_torch(arguments: argparse.Namespace) -> None:
    """Prints ours beside torch's, forward and backward where torch has one, and the ratio."""
    for kind in arguments.only.split(","):
        arrays = inputs(arguments.length)
        ours = variants(arguments.length)[kind]
        their_forward, their_step = theirs(kind, arrays)
        forward = jax.jit(ours)
        difference = np.abs(np.asarray(forward(*arrays)) - their_forward().numpy()).max()
        if difference > 1e-3:
            raise SystemExit(f"{kind}: both sides differ by {difference:.1e}: nothing to time")
        both = step(ours)
        runs = {
            "ours": lambda f=forward, a=arrays: jax.block_until_ready(f(*a)),
            "theirs": their_forward,
        }
        pairs = [("forward", runs)]
        if their_step is not None:
            runs = {"ours": lambda f=both, a=arrays: jax.block_until_ready(f(*a))}
            pairs.append(("forward and backward", runs | {"theirs": their_step}))
        for what, runs in pairs:
            s = in_turn(runs, arguments.repeats)
            print(
                f"{kind}, {what}: ours {1e3 * s['ours']:.1f} ms, torch {1e3 * s['theirs']:.1f} ms, "
                f"{s['theirs'] / s['ours']:.1f} x (they differ by {difference:.0e})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["scaling", "torch"])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--max-length", type=int, default=32768)
    parser.add_argument("--max-dense", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep-memory", action="store_true")
    arguments = parser.parse_args()
    every = {
        "scaling": "window,dilated,blocks,longformer,bigbird,dense",
        "torch": "window,longformer,bigbird",
    }
    arguments.only = arguments.only or every[arguments.what]
    print(
        f"float32, batch 1, {N} heads of {H}, window {SIDE} + {SIDE}, {GLOBAL} global tokens, "
        f"blocks of {BLOCK} with {DRAWN} random ones; jax {jax.__version__}, "
        f"{os.cpu_count()} cores; medians of {arguments.repeats}"
    )
    if arguments.keep_memory:
        keep_freed_memory()
    {"scaling": scaling, "torch": beside_torch}[arguments.what](arguments)


if __name__ == "__main__":
    main()
