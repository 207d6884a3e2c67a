"""Tokens per second of greedy decoding, beside a PyTorch GPT with a KV cache. Run:

    python -m tests.benchmarks.decode [--shapes small,medium,gpt2] [--batch 1] [--rounds 5]

Both start from the same weights and prompt and must write the same tokens before anything is timed.
PyTorch runs eager in inference mode with a preallocated cache, SDPA over the filled part of it, one
fused qkv matmul a layer, once with all threads and once with one (small matrices lose more by
waiting for a second thread than they gain by it): the faster counts. jaxformer runs
`jaxformer.generate`. A time holds everything from prompt to the last token on the host. Each side
lives in its own process; they take turns and the medians are compared. Target: 5x.

Every token must read all weights once, so the machine's reading speed bounds any program; it is
taken as that of a sum over as many floats, by all threads, in the same run, and printed beside.

Shapes: B batch, T time, S cache length, L layers, D model width, N heads, H head width.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A GPT-2-like decoder and how many tokens it writes."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    new_tokens: int
    max_length: int = 1024


SHAPES = {
    "small": Shape(4, 128, 4, 65, 256),
    "medium": Shape(6, 384, 6, 65, 256),
    "gpt2": Shape(12, 768, 12, 50257, 64),
}
PROMPT_LENGTH = 16
THREADS = {"torch": 0, "torch, 1 thread": 1}  # 0: its default
SIDES = (*THREADS, "jaxformer")


def make_weights(shape: Shape) -> dict[str, np.ndarray]:
    """Returns GPT-2's parameters by name; those of the blocks have a leading L axis."""
    rng = np.random.default_rng(0)
    L, D = shape.num_layers, shape.width

    def normal(*size: int) -> np.ndarray:
        return 0.05 * rng.standard_normal(size, dtype=np.float32)

    weights = {"tokens": normal(shape.vocab_size, D), "positions": normal(shape.max_length, D)}
    for name, size in {"q": (D, D), "k": (D, D), "v": (D, D), "out": (D, D), "up": (D, 4 * D),
                       "down": (4 * D, D)}.items():  # fmt: skip
        weights[name], weights[f"{name}_bias"] = normal(L, *size), normal(L, size[1])
    for name, size in {"norm1": (L, D), "norm2": (L, D), "norm": (D,)}.items():
        weights[name], weights[f"{name}_bias"] = 1 + normal(*size), normal(*size)
    return weights


def make_prompts(shape: Shape, batch: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return rng.integers(0, shape.vocab_size, (batch, PROMPT_LENGTH)).tolist()


def torch_side(shape: Shape, batch: int, threads: int = 0):
    """Returns a function that writes the new tokens by PyTorch; 0 threads are its default."""
    import torch
    from torch.nn import functional as F

    if threads:
        torch.set_num_threads(threads)

    L, D, N = shape.num_layers, shape.width, shape.num_heads
    raw = {name: torch.from_numpy(array) for name, array in make_weights(shape).items()}
    # F.linear wants [out, in].
    w = {n: a.transpose(1, 2).contiguous() if n in ("out", "up", "down") else a
         for n, a in raw.items()}  # fmt: skip
    qkv = torch.cat([raw[n].transpose(1, 2) for n in "qkv"], 1).contiguous()
    qkv_bias = torch.cat([raw[f"{n}_bias"] for n in "qkv"], 1)
    layers = [
        {"qkv": qkv[i], "qkv_bias": qkv_bias[i]}
        | {n: w[n][i] for n in w if n not in ("tokens", "positions", "norm", "norm_bias")}
        for i in range(L)
    ]
    length = PROMPT_LENGTH + shape.new_tokens
    cache = torch.zeros(L, 2, batch, N, length, D // N)
    prompts = torch.tensor(make_prompts(shape, batch))

    def forward(tokens_BT, start: int):
        B, T = tokens_BT.shape
        stop = start + T
        x = F.embedding(tokens_BT, w["tokens"]) + w["positions"][start:stop]
        for layer, (k_BNSH, v_BNSH) in zip(layers, cache, strict=True):
            y = F.layer_norm(x, (D,), layer["norm1"], layer["norm1_bias"])
            q, k, v = F.linear(y, layer["qkv"], layer["qkv_bias"]).split(D, 2)
            q, k, v = (a.view(B, T, N, D // N).transpose(1, 2) for a in (q, k, v))
            k_BNSH[:, :, start:stop], v_BNSH[:, :, start:stop] = k, v
            y = F.scaled_dot_product_attention(
                q, k_BNSH[:, :, :stop], v_BNSH[:, :, :stop], is_causal=T > 1
            )
            y = y.transpose(1, 2).reshape(B, T, D)
            x = x + F.linear(y, layer["out"], layer["out_bias"])
            y = F.layer_norm(x, (D,), layer["norm2"], layer["norm2_bias"])
            y = F.gelu(F.linear(y, layer["up"], layer["up_bias"]), approximate="tanh")
            x = x + F.linear(y, layer["down"], layer["down_bias"])
        x = F.layer_norm(x[:, -1], (D,), w["norm"], w["norm_bias"])
        return F.linear(x, w["tokens"]).argmax(-1, keepdim=True)

    @torch.inference_mode()
    def write() -> list[list[int]]:
        tokens = [forward(prompts, 0)]
        for step in range(shape.new_tokens - 1):
            tokens.append(forward(tokens[-1], PROMPT_LENGTH + step))
        return torch.cat(tokens, 1).tolist()

    return write


def jaxformer_side(shape: Shape, batch: int):
    """Returns a function that writes the new tokens by jaxformer."""
    import jax
    import jax.numpy as jnp

    from jaxformer.generate import Config, generate
    from jaxformer.models import decoder

    L, D, N = shape.num_layers, shape.width, shape.num_heads
    w = make_weights(shape)

    def norm(name: str) -> dict:
        return {"scale": w[name], "bias": w[f"{name}_bias"]}

    attention = {"out": w["out"].reshape(L, N, -1, D), "out_bias": w["out_bias"]}
    for name in "qkv":
        attention[name] = w[name].reshape(L, D, N, -1)
        attention[f"{name}_bias"] = w[f"{name}_bias"].reshape(L, N, -1)
    feed_forward = {"in": w["up"], "in_bias": w["up_bias"], "out": w["down"]}
    params = {
        "embed": {"tokens": w["tokens"], "positions": w["positions"]},
        "layers": {
            "attention_norm": norm("norm1"), "attention": attention,
            "feed_forward_norm": norm("norm2"),
            "feed_forward": feed_forward | {"out_bias": w["down_bias"]},
        },
        "final_norm": norm("norm"),
    }  # fmt: skip
    model = decoder.make(
        decoder.Config(
            vocab_size=shape.vocab_size, num_layers=L, width=D, num_heads=N,
            max_length=shape.max_length,
        )
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, params)
    wanted = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0)))
    if wanted != jax.tree.map(jnp.shape, params):
        raise SystemExit("the benchmark's weights do not fit the decoder")
    config = Config(max_new_tokens=shape.new_tokens, temperature=0.0)
    prompts = make_prompts(shape, batch)
    return lambda: generate(model, params, prompts, config)


def seconds_to_read(size: int) -> float:
    """Returns the time in which all threads sum `size` bytes of floats, the best of 9."""
    import torch

    floats = torch.ones(size // 4)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        floats.sum()
        times.append(time.perf_counter() - start)
    return min(times)


def work(side: str, shape: Shape, batch: int) -> None:
    """A side's process: answers the first line with its tokens, "read" with the time to read as
    many bytes as there are weights, every other with the time to write."""
    if side == "jaxformer":
        write = jaxformer_side(shape, batch)
    else:
        write = torch_side(shape, batch, THREADS[side])
    for number, line in enumerate(sys.stdin):
        if number == 0:
            answer = write()
        elif line.strip() == "read":
            size = sum(array.nbytes for array in make_weights(shape).values())
            answer = size, seconds_to_read(size)
        else:
            start = time.perf_counter()
            write()
            answer = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


def measure(name: str, batch: int, rounds: int) -> None:
    """Checks and times one shape and prints its lines."""
    shape = SHAPES[name]
    command = [sys.executable, "-m", __spec__.name, "--shapes", name, "--batch", str(batch)]
    with tempfile.NamedTemporaryFile("w+") as log:
        workers = {
            side: subprocess.Popen(
                [*command, "--worker", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )
            for side in SIDES
        }  # fmt: skip

        def ask(side: str, what: str = "go"):
            workers[side].stdin.write(f"{what}\n")
            workers[side].stdin.flush()
            line = workers[side].stdout.readline()
            if not line:
                raise SystemExit(f"{side} died; its words:\n{Path(log.name).read_text()[-3000:]}")
            return json.loads(line)

        want, got = ask("torch"), ask("jaxformer")
        ask("torch, 1 thread")
        if want != got:
            rows = zip(want, got, strict=True)
            at = [next((i for i, (a, b) in enumerate(zip(*row)) if a != b), -1) for row in rows]
            raise SystemExit(f"{name}: the tokens differ, first at {at} of each row")
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                times[side].append(ask(side))
        size, seconds = ask("torch", "read")
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    count = batch * shape.new_tokens
    speed = {side: count / float(np.median(values)) for side, values in times.items()}
    sizes = f"L{shape.num_layers} D{shape.width} V{shape.vocab_size} B{batch}"
    print(f"{name} ({sizes}, {shape.new_tokens} new tokens a row, all equal)")
    for side in SIDES:
        spread = ", ".join(f"{count / t:.0f}" for t in sorted(times[side]))
        print(f"  {side:15s} {speed[side]:9.0f} tokens/s   ({spread})")
    ours, theirs = speed["jaxformer"], max(speed[side] for side in THREADS)
    print(f"  jaxformer is {ours / theirs:.2f}x as fast (target 5x)")
    print(f"  reading the {size / 1e6:.0f} MB of weights bounds any program at "
          f"{batch / seconds:.0f} tokens/s, {batch / seconds / theirs:.1f}x PyTorch's")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, SHAPES[args.shapes], args.batch)
        return
    for name in args.shapes.split(","):
        measure(name, args.batch, args.rounds)


if __name__ == "__main__":
    main()
