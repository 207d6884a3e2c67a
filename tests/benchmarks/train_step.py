"""Milliseconds of one training step, beside a PyTorch GPT of the same shape. Run:

    python -m tests.benchmarks.train_step [--shapes small,medium,gpt2] [--rounds 7] [--json f.json]

Both sides start from the same weights, see the same tokens and do the same work: forward, backward,
clipping to norm 1, AdamW with weight decay on matrices. Their losses over the first steps must
agree before anything is timed. PyTorch runs its scaled_dot_product_attention and fused AdamW, eager
and compiled, in float32 and under bf16 autocast; jaxformer runs the library's own decoder,
objective, optimizer and step. Each side lives in its own process; they take turns, one round each,
so that both see the same weather, and the medians are compared. jaxformer's process keeps freed
memory, as `jaxformer train` does; `--keep-memory` gives PyTorch's the same setting.

Shapes: B batch, T time, L layers, D model width, N heads, H head width, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.train.memory import keep_freed_memory


class Shape(NamedTuple):
    """A GPT-2-like decoder and its batch."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    length: int
    batch: int

    def __str__(self) -> str:
        return f"L{self.num_layers} D{self.width} T{self.length} B{self.batch} V{self.vocab_size}"


SHAPES = {
    "small": Shape(4, 128, 4, 65, 64, 12),
    "medium": Shape(6, 384, 6, 65, 256, 16),
    "gpt2": Shape(12, 768, 12, 50257, 64, 4),
}
VARIANTS = {
    "torch": ("eager float32", "compile float32", "eager bfloat16", "compile bfloat16"),
    "jax": ("float32", "bfloat16"),
}
LEARNING_RATE, WEIGHT_DECAY, CLIP, BETAS, EPS = 1e-3, 0.1, 1.0, (0.9, 0.95), 1e-8
CHECKED_STEPS = 4


def make_weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns GPT-2's parameters by name; those of the blocks have a leading L axis."""
    rng = np.random.default_rng(seed)
    L, D, F = shape.num_layers, shape.width, 4 * shape.width

    def normal(*size: int) -> np.ndarray:
        return 0.02 * rng.standard_normal(size, dtype=np.float32)

    weights = {"tokens": normal(shape.vocab_size, D), "positions": normal(shape.length, D)}
    matrices = {"q": (D, D), "k": (D, D), "v": (D, D), "out": (D, D), "up": (D, F), "down": (F, D)}
    for name, size in matrices.items():
        weights[name] = normal(L, *size)
        weights[f"{name}_bias"] = normal(L, size[1])
    for name in ("norm1", "norm2"):
        weights[name], weights[f"{name}_bias"] = 1 + normal(L, D), normal(L, D)
    weights["norm"], weights["norm_bias"] = 1 + normal(D), normal(D)
    return weights


def make_tokens(shape: Shape) -> np.ndarray:
    """Returns CHECKED_STEPS batches of T + 1 tokens; timing repeats the last."""
    rng = np.random.default_rng(1)
    size = (CHECKED_STEPS, shape.batch, shape.length + 1)
    return rng.integers(0, shape.vocab_size, size, dtype=np.int32)


def torch_side(shape: Shape, variant: str):
    """Returns step(tokens [B, T+1]) -> loss, a float, for the PyTorch GPT."""
    import torch
    from torch import nn
    from torch.nn import functional

    weights = make_weights(shape)
    L, D, N = shape.num_layers, shape.width, shape.num_heads

    def tensor(name: str, layer: int | None = None, transpose: bool = False):
        array = weights[name] if layer is None else weights[name][layer]
        return torch.from_numpy(np.ascontiguousarray(array.T if transpose else array))

    def load(module: nn.Module, name: str, layer: int | None = None) -> nn.Module:
        with torch.no_grad():
            module.weight.copy_(tensor(name, layer, transpose=isinstance(module, nn.Linear)))
            module.bias.copy_(tensor(f"{name}_bias", layer))
        return module

    class Block(nn.Module):
        def __init__(self, layer: int):
            super().__init__()
            self.norm1 = load(nn.LayerNorm(D), "norm1", layer)
            self.norm2 = load(nn.LayerNorm(D), "norm2", layer)
            self.qkv = nn.Linear(D, 3 * D)
            with torch.no_grad():
                parts = [tensor(name, layer, transpose=True) for name in "qkv"]
                self.qkv.weight.copy_(torch.cat(parts))
                self.qkv.bias.copy_(torch.cat([tensor(f"{name}_bias", layer) for name in "qkv"]))
            self.out = load(nn.Linear(D, D), "out", layer)
            self.up = load(nn.Linear(D, 4 * D), "up", layer)
            self.down = load(nn.Linear(4 * D, D), "down", layer)

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).split(D, dim=2)
            q, k, v = (y.view(B, T, N, D // N).transpose(1, 2) for y in (q, k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, D))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(shape.vocab_size, D)
            self.positions = nn.Embedding(shape.length, D)
            with torch.no_grad():
                self.tokens.weight.copy_(tensor("tokens"))
                self.positions.weight.copy_(tensor("positions"))
            self.blocks = nn.ModuleList([Block(layer) for layer in range(L)])
            self.norm = load(nn.LayerNorm(D), "norm")

        def forward(self, tokens, targets):
            x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    mode, dtype = variant.split()
    gpt = GPT()
    decayed = [p for p in gpt.parameters() if p.ndim > 1]
    others = [p for p in gpt.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True,
    )  # fmt: skip
    forward = torch.compile(gpt) if mode == "compile" else gpt
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def step(tokens: np.ndarray) -> float:
        batch = torch.from_numpy(tokens.astype(np.int64))
        with autocast:
            loss = forward(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def jax_side(shape: Shape, variant: str):
    """Returns step(tokens [B, T+1]) -> loss, a float, for jaxformer."""
    import jax
    import jax.numpy as jnp

    from jaxformer.models import decoder
    from jaxformer.objectives import causal_lm
    from jaxformer.train import optimizer, state, step

    config = decoder.Config(
        vocab_size=shape.vocab_size, num_layers=shape.num_layers, width=shape.width,
        num_heads=shape.num_heads, max_length=shape.length, compute_dtype=variant,
    )  # fmt: skip
    model = decoder.make(config)
    weights = make_weights(shape)
    L, N = shape.num_layers, shape.num_heads

    def layer(path: str) -> np.ndarray:
        return weights[path]

    def norm(name: str) -> dict:
        return {"scale": layer(name), "bias": layer(f"{name}_bias")}

    def heads(name: str, *size: int) -> dict:
        in_bias = layer(f"{name}_bias").reshape(L, N, -1)
        return {name: layer(name).reshape(size), f"{name}_bias": in_bias}

    D, H = shape.width, shape.width // N
    attention = {"out": layer("out").reshape(L, N, H, D), "out_bias": layer("out_bias")}
    for name in "qkv":
        attention.update(heads(name, L, D, N, H))
    params = {
        "embed": {"tokens": weights["tokens"], "positions": weights["positions"]},
        "layers": {
            "attention_norm": norm("norm1"),
            "attention": attention,
            "feed_forward_norm": norm("norm2"),
            "feed_forward": {
                "in": layer("up"), "in_bias": layer("up_bias"),
                "out": layer("down"), "out_bias": layer("down_bias"),
            },
        },
        "final_norm": norm("norm"),
    }  # fmt: skip
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    got = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    if jax.tree.map(lambda x: x.shape, wanted) != jax.tree.map(lambda x: x.shape, got):
        raise ValueError(f"the benchmark's weights do not fit the decoder:\n{wanted}\n{got}")
    chosen = optimizer.Config(
        learning_rate=LEARNING_RATE, b1=BETAS[0], b2=BETAS[1], eps=EPS, schedule="constant",
        weight_decay=WEIGHT_DECAY, clip_norm=CLIP, warmup_steps=0,
    )  # fmt: skip
    tx = optimizer.make_optimizer(chosen, 1000, params)
    loss_fn = causal_lm.make(causal_lm.Config(), model, None)
    run = jax.jit(step.make_train_step(loss_fn, tx, seed=0), donate_argnums=0)
    current = state.from_params(jax.tree.map(jnp.asarray, params), tx, ema=False)
    weights_BT = np.ones((shape.batch, shape.length), np.float32)

    def one(tokens: np.ndarray) -> float:
        nonlocal current
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights_BT}
        current, metrics = run(current, batch)
        jax.block_until_ready(current)
        total, count = metrics["loss"]
        return float(total) / float(count)

    return one


def work(side: str, shape_name: str, keep: bool) -> None:
    """A side's process: reads {"variant", "seconds"} lines, answers with losses or times."""
    if side == "jax" or keep:
        keep_freed_memory()  # as `jaxformer train` does, before any threads start
    shape = SHAPES[shape_name]
    tokens = make_tokens(shape)
    steps = {}
    make = torch_side if side == "torch" else jax_side
    for line in sys.stdin:
        order = json.loads(line)
        variant, answer = order["variant"], {}
        if variant not in steps:
            steps[variant] = make(shape, variant)
            start = time.perf_counter()
            answer["losses"] = [steps[variant](batch) for batch in tokens]
            answer["first"] = time.perf_counter() - start
        else:
            # At least 3 steps, then as many as fit; the first warms caches and threads up.
            times, end = [], time.perf_counter() + order["seconds"]
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                steps[variant](tokens[-1])
                times.append(1e3 * (time.perf_counter() - start))
            answer["ms"] = times[1:]
        print(json.dumps(answer), flush=True)


class Worker:
    """One side's process, which idles while the other runs."""

    def __init__(self, side: str, shape_name: str, keep: bool, log):
        command = [sys.executable, "-m", __spec__.name, "--worker", side, "--shapes", shape_name]
        command += ["--keep-memory"] if keep else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.log = log

    def ask(self, **order) -> dict:
        """Sends an order and returns the answer."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"a worker died; its words:\n{Path(self.log.name).read_text()[-3000:]}"
            )
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(shape_name: str, rounds: int, seconds: float, log, only: list[str], keep: bool) -> dict:
    """Returns the medians in ms of every variant, and the losses of the checked steps."""
    workers = {side: Worker(side, shape_name, keep, log) for side in VARIANTS}
    pairs = [(s, v) for s in VARIANTS for v in VARIANTS[s] if not only or f"{s} {v}" in only]
    losses = {}
    for side, variant in pairs:
        losses[f"{side} {variant}"] = workers[side].ask(variant=variant)["losses"]
    reference = losses["torch eager float32"]
    gaps = {
        name: max(abs(a - b) for a, b in zip(trace, reference)) for name, trace in losses.items()
    }
    for name, gap in gaps.items():
        bound = 1e-4 if name.endswith("float32") else 5e-2
        if not gap <= bound * max(1.0, reference[0]):
            raise SystemExit(f"{name}: its losses {losses[name]} are not those of {reference}")
    times = {f"{side} {variant}": [] for side, variant in pairs}
    for number in range(rounds):
        # Alternate the order too: a clock that falls with heat would favour the first.
        for side, variant in pairs if number % 2 == 0 else reversed(pairs):
            times[f"{side} {variant}"] += workers[side].ask(variant=variant, seconds=seconds)["ms"]
    for worker in workers.values():
        worker.close()
    medians = {name: float(np.median(ms)) for name, ms in times.items()}
    torch32 = min((t for n, t in medians.items() if n.startswith("torch") and "float32" in n))
    torch_any = min(t for n, t in medians.items() if n.startswith("torch"))
    jax_any = min(t for n, t in medians.items() if n.startswith("jax"))
    jax32 = medians.get("jax float32", math.nan)
    return {
        "shape": str(SHAPES[shape_name]),
        "losses": losses,
        "loss_gap": gaps,
        "ms": medians,
        "float32 against float32": torch32 / jax32,
        "best against best float32": torch32 / jax_any,
        "best against best of all": torch_any / jax_any,
    }


def report(result: dict) -> None:
    """Prints one shape's table."""
    print(f"\n{result['shape']}")
    for name, ms in result["ms"].items():
        first, gap = result["losses"][name][0], result["loss_gap"][name]
        print(f"  {name:24s} {ms:10.1f} ms   loss {first:.5f}, over {CHECKED_STEPS} steps "
              f"within {gap:.1e} of PyTorch's")  # fmt: skip
    for key in ("float32 against float32", "best against best float32", "best against best of all"):
        print(f"  jaxformer is {result[key]:.2f}x as fast, {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--only", default="", help="comma-separated variants, 'jax float32,...'")
    parser.add_argument(
        "--keep-memory", action="store_true",
        help="PyTorch's process too keeps freed memory, as jaxformer's does by itself",
    )  # fmt: skip
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.shapes, args.keep_memory)
        return
    results = []
    only = [name for name in args.only.split(",") if name]
    for name in args.shapes.split(","):
        with tempfile.NamedTemporaryFile("w+") as log:
            results.append(measure(name, args.rounds, args.seconds, log, only, args.keep_memory))
        report(results[-1])
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
