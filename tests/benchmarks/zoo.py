"""Time and memory over the length of every way to attend that claims linear cost. Run:

    python -m tests.benchmarks.zoo [--max-length 32768] [--only window,Performer]

Forward and backward at 8 heads of 64, batch 1, with dense softmax attention beside them while it
fits in `--dense-limit` GiB. Each value is first compared with its reference in float64 over all
pairs, at a short length. Memory is what the compiled program asks for beyond its inputs and outputs
(memory_analysis().temp_size_in_bytes: XLA's plan, not the process's resident memory). All variants
of a length are timed in turn, so that a busy machine disturbs them alike; one that took longer than
--slow seconds is not timed at greater lengths. malloc keeps what is freed, as in jaxformer's
commands: else a call's first touch of new pages is timed too. Target: slopes <= 1.15.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.train.memory import keep_freed_memory
from tests.conformance.case import Case
from tests.conformance.evaluate import attend, gradients, probe_of, true_values
from tests.conformance.matrix import VARIANTS
from tests.conformance.variant import Variant

GIB, MIB = 2**30, 2**20
FIRST, SHORT, TARGET = 1024, 300, 1.15
# The sizes of the papers, where they say them.
SIZES: dict[str, dict[str, Any]] = {
    "chunked": {},
    "sliding window": {"left": 256, "right": 256},
    "dilated window": {"left": 128, "right": 128, "dilation": 2},
    "window and sinks": {"left": 256, "right": 256, "sinks": 4},
    "window, sink logits": {"left": 128},
    "window, soft-cap": {"left": 256, "right": 256, "soft_cap": 50.0},
    "block-local": {"block": 256, "look_back": 1},
    "Longformer": {"window": 512, "max_global": 16},
    "BigBird": {"block": 64},
    "Linformer": {"width": 256},
    "Performer": {"num_features": 256},
    "linear": {},
    "RetNet decay": {"kernel": "identity"},
    "GLA gates": {"kernel": "identity"},
    "Nystromformer": {"num_landmarks": 64, "iterations": 6},
    "RETRO cross-attention": {"chunk": 64},
}
# Exact, and cheap in memory, but their time is quadratic.
QUADRATIC = ("dense", "chunked")


class Row(NamedTuple):
    length: int
    seconds: float
    bytes: int


def chosen(names: list[str]) -> list[Variant]:
    """Returns the variants at their papers' sizes, dense first."""
    return [
        dataclasses.replace(variant, static=SIZES.get(variant.name, {}))
        for variant in VARIANTS
        if (not names and variant.linear) or any(n in variant.name for n in ["dense", *names])
    ]


def case_of(variant: Variant, length: int, heads: int, width: int) -> Case:
    keys = length if variant.keys == 20 else 128
    causal = variant.causal == "always"
    return Case(B=1, T=length, S=keys, N=heads, K=heads, H=width, causal=causal)


def step(variant: Variant, case: Case) -> Any:
    run = functools.partial(gradients, functools.partial(attend, variant))
    return jax.jit(lambda arrays, own, probe: run(arrays, own, case.mask(), probe))


def check(variant: Variant, heads: int, width: int) -> float:
    """Returns the largest difference from the reference; raises when it is too large."""
    case = case_of(variant, SHORT, heads, width)
    arrays, own = variant.draw(case)
    out = np.asarray(step(variant, case)(arrays, own, probe_of(case))[0], np.float64)
    want = true_values(variant, arrays, own, case)
    worst = abs(out - want).max() / max(1.0, abs(want).max())
    if not worst <= 10 * variant.tolerance:
        raise SystemExit(f"{variant} is off its reference by {worst:.1e}: there is nothing to time")
    return float(worst)


def measure(
    variants: list[Variant], length: int, slow: set[str], a: argparse.Namespace
) -> dict[str, Row]:
    """Times all variants of a length in turn; the slow, or those too large, not at all."""
    programs, memory = {}, {}
    for variant in variants:
        case = case_of(variant, length, a.heads, a.head_dim)
        inputs = (*variant.draw(case), probe_of(case))
        program = step(variant, case).lower(*inputs).compile()
        memory[variant.name] = program.memory_analysis().temp_size_in_bytes
        if memory[variant.name] <= a.dense_limit * GIB and variant.name not in slow:
            jax.block_until_ready(program(*inputs))
            programs[variant.name] = (program, inputs)
    seconds: dict[str, list[float]] = {name: [] for name in memory}
    for _ in range(a.repeats):
        for name, (program, inputs) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Row(length, statistics.median(seconds[name] or [math.nan]), memory[name])
        for name in memory
    }


def slope(lengths: list[int], numbers: list[float]) -> float:
    """The exponent p of the fit numbers = c * length^p."""
    known = [(x, y) for x, y in zip(lengths, numbers, strict=True) if math.isfinite(y) and y > 0]
    if len(known) < 2:
        return math.nan
    x, y = np.log(np.array(known)).T
    return float(np.polyfit(x, y, 1)[0])


def faster_from(rows: list[Row], dense: list[Row]) -> str:
    """The length from which on a variant is faster than dense, wherever dense was run."""
    both = [(r, d) for r, d in zip(rows, dense, strict=True) if math.isfinite(d.seconds)]
    since = None
    for row, of_dense in both:
        if row.seconds >= of_dense.seconds:
            since = None
        elif since is None:
            since = row.length
    return "never" if since is None else f"T = {since}"


def report(rows: dict[str, list[Row]]) -> None:
    lengths = [row.length for row in rows["dense"]]
    shown = "".join(f"{n // 1024:>8}k" for n in lengths)
    for what, of in (("milliseconds", lambda r: 1e3 * r.seconds), ("MiB", lambda r: r.bytes / MIB)):
        print(f"\n{what:<24}{shown}   slope  from {lengths[len(lengths) // 2] // 1024}k")
        for name, measured in rows.items():
            numbers = [of(row) for row in measured]
            # Over all lengths, and over the longer half, where constants count less.
            both = [slope(lengths[i:], numbers[i:]) for i in (0, len(lengths) // 2)]
            linear = name not in QUADRATIC or (name == "chunked" and what == "MiB")
            mark = " !" if linear and max(both) > TARGET else ""
            cells = "".join(f"{number:>9.1f}" for number in numbers)
            print(f"{name:<24}{cells}{both[0]:>8.2f}{both[1]:>10.2f}{mark}")
    print()
    for name in rows:
        if name not in QUADRATIC:
            print(f"{name}: faster than dense from {faster_from(rows[name], rows['dense'])}")
    print(f"! marks a slope above {TARGET}; nan: not run, for --dense-limit or --slow")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--max-length", type=int, default=32768)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dense-limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    a = parser.parse_args()
    keep_freed_memory()  # before any threads start
    variants = chosen([name for name in a.only.split(",") if name])
    print(
        f"forward and backward, float32, batch 1, {a.heads} heads of {a.head_dim}; jax "
        f"{jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores; medians of "
        f"{a.repeats}\nlargest difference from the reference at T = {SHORT}:"
    )
    for variant in variants:
        print(f"  {variant.name:<22} {check(variant, a.heads, a.head_dim):.1e}", flush=True)
    rows: dict[str, list[Row]] = {variant.name: [] for variant in variants}
    length = FIRST
    while length <= a.max_length:
        slow = {name for name, seen in rows.items() if seen and not seen[-1].seconds <= a.slow}
        for name, row in measure(variants, length, slow, a).items():
            rows[name].append(row)
        print(f"T = {length} measured", flush=True)
        length *= 2
    report(rows)


if __name__ == "__main__":
    main()
