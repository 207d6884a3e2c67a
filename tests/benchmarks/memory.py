"""Time of searching a large memory, beside the matmul that scores it.

    python -m tests.benchmarks.memory [--memory 65536] [--queries 512] [--heads 8] [--top-k 32]

The matmul is timed in two ways: as one einsum that holds all scores, and in the blocks of the
search, each written over the one before, which is as fast as it can be. The search is compared with
sorting first. All are run in turn, so that a busy machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops.attention import memory
from jaxformer.ops.linear import einsum


def all_scores(q_BTNH, k_BMNH):
    """One matmul, which leaves all scores [B, N, T, M]."""
    return einsum("BTNH,BMNH->BNTM", q_BTNH, k_BMNH, out_dtype=jnp.float32)


def blocks_of_scores(q_BTNH, k_BMNH):
    """The same products, of as many queries and heads at a time as `search` takes at most."""
    (B, T, N, H), M = q_BTNH.shape, k_BMNH.shape[1]
    t = max(1, min(T, memory.SCORES // (B * M)))
    while T % t:
        t -= 1
    q_XBtH = q_BTNH.reshape(B, T // t, t, N, H).transpose(1, 3, 0, 2, 4).reshape(-1, B, t, H)
    k_NBMH = k_BMNH.transpose(2, 0, 1, 3)

    def step(_, each):
        q_BtH, n = each
        return einsum("BtH,BMH->BtM", q_BtH, k_NBMH[n], out_dtype=jnp.float32), None

    heads = jnp.tile(jnp.arange(N), T // t)
    return jax.lax.scan(step, jnp.zeros((B, t, M), jnp.float32), (q_XBtH, heads))[0]


def check(q_BTNH, k_BMNH, top_k: int) -> None:
    """Compares the search of a few queries with sorting; raises where they differ."""
    few = q_BTNH[:, :16]
    found, index = memory.search(few, k_BMNH, top_k=top_k, scale=1.0)
    scores_BTNM = np.asarray(all_scores(few, k_BMNH)).swapaxes(1, 2)
    expected = -np.sort(-scores_BTNM, axis=-1)[..., :top_k]
    at = np.take_along_axis(scores_BTNM, np.asarray(index), axis=-1)
    worst = max(np.abs(np.asarray(found) - expected).max(), np.abs(at - expected).max())
    if not worst < 1e-2 * np.abs(expected).max():
        raise SystemExit(f"the search and sorting differ by {worst:.1e}: there is nothing to time")
    print(f"the search and sorting agree to {worst:.1e} ({16 * q_BTNH.shape[2]} queries)\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, default=65536, help="entries, M")
    parser.add_argument("--queries", type=int, default=512, help="T")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    a = parser.parse_args()

    shapes = (1, a.queries, a.heads, a.head_dim), (1, a.memory, a.heads, a.head_dim)
    q, k, v = (
        jax.random.normal(jax.random.key(i), shape, a.dtype)
        for i, shape in enumerate((*shapes, shapes[1]))
    )
    print(
        f"{a.queries} queries x {a.heads} heads of {a.head_dim}, memory of {a.memory}, top "
        f"{a.top_k}, {a.dtype}; jax {jax.__version__}, {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} cores; medians of {a.repeats}"
    )
    check(q, k, a.top_k)
    attend = lambda q, k, v: memory.memory_attention(q, k, v, top_k=a.top_k)  # noqa: E731
    programs = {
        "matmul, all scores at once": (all_scores, (q, k)),
        "matmul, block by block": (blocks_of_scores, (q, k)),
        "search": (lambda q, k: memory.search(q, k, top_k=a.top_k), (q, k)),
        "search and attend": (attend, (q, k, v)),
        "... and its gradient": (jax.grad(lambda *x: attend(*x).sum()), (q, k, v)),
    }
    compiled, seconds = {}, {name: [] for name in programs}
    for name, (function, arrays) in programs.items():
        compiled[name] = jax.jit(function).lower(*arrays).compile()
        jax.block_until_ready(compiled[name](*arrays))
    for _ in range(a.repeats):
        for name, (_, arrays) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*arrays))
            seconds[name].append(time.perf_counter() - start)

    def ratio(name: str, base: str) -> float:
        pairs = zip(seconds[name], seconds[base], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    print(f"{'':<28} {'ms':>8} {'x at once':>10} {'x by block':>11} {'MiB':>8}")
    for name, program in compiled.items():
        bases = (ratio(name, base) for base in list(programs)[:2])
        size = program.memory_analysis()
        mib = (size.temp_size_in_bytes + size.output_size_in_bytes) / 2**20
        print("{:<28} {:>8.0f} {:>10.2f} {:>11.2f} {:>8.0f}".format(
            name, 1e3 * statistics.median(seconds[name]), *bases, mib))  # fmt: skip


if __name__ == "__main__":
    main()
