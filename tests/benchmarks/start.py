"""Seconds from the start of Python to the end of the first training step. Run:

    python -m tests.benchmarks.start [--shape small] [--json out.json]

Each line is a fresh process: jaxformer with an empty compilation cache, jaxformer with the cache
that the first one left (what every start but the first sees), PyTorch eager, and torch.compile with
an empty and with a warm cache of its own. The clock starts before `import`; the step is that of
`train_step.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import train_step

# (name, side, variant), in this order: a cold start fills the cache of the warm one after it
STARTS = (
    ("jaxformer, cold cache", "jax", "float32"),
    ("jaxformer, warm cache", "jax", "float32"),
    ("torch eager", "torch", "eager float32"),
    ("torch.compile, cold cache", "torch", "compile float32"),
    ("torch.compile, warm cache", "torch", "compile float32"),
)


def child(side: str, variant: str, shape_name: str, cache: str, born: float) -> None:
    """One start: prints the seconds since `born` at which the imports and the first step ended."""
    shape = train_step.SHAPES[shape_name]
    if side == "jax":
        import jax

        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        make = train_step.jax_side
    else:
        import torch  # noqa: F401

        make = train_step.torch_side
    imported = time.time() - born
    step = make(shape, variant)
    loss = step(train_step.make_tokens(shape)[0])
    print(json.dumps({"import": imported, "first step": time.time() - born, "loss": loss}))


def start(side: str, variant: str, shape_name: str, cache: Path) -> dict:
    """Runs one child and returns what it printed."""
    # TorchInductor takes its cache's place from the environment.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    order = [side, variant, shape_name, str(cache / "xla"), repr(time.time())]
    command = [sys.executable, "-m", __spec__.name, "--child", *order]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} {variant} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="small", choices=train_step.SHAPES)
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, variant, shape_name, cache, born = args.child
        child(side, variant, shape_name, cache, float(born))
        return
    results = {}
    print(train_step.SHAPES[args.shape])
    with tempfile.TemporaryDirectory() as folder:
        for name, side, variant in STARTS:
            results[name] = start(side, variant, args.shape, Path(folder))
            seconds = results[name]
            words = f"imports {seconds['import']:6.2f} s, first step {seconds['first step']:6.2f} s"
            print(f"  {name:28s} {words}, loss {seconds['loss']:.5f}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
