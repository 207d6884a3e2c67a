"""Time and peak memory of the head with cross-entropy: chunked beside dense. Run:

    python -m tests.benchmarks.cross_entropy [--vocab 50257] [--width 768] [--rounds 5]

Both compute the mean loss of 4 x 1024 tokens and its gradients by features and table; they must
agree before anything is timed. Dense is the plain way: logits = x @ table.T, log-softmax, autodiff.
Memory is told twice: as XLA plans it (what the op holds on top of its arguments and results), and
as the peak of a process's resident memory over what it held before the call, results and XLA's own
working memory included. Targets: planned memory <= 15 % of dense, time <= 1.1 of dense.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np

B, T = 4, 1024
NAMES = ("dense", "chunked")


def build(name: str, vocab: int, width: int, dtype: str):
    """Returns (compiled value and gradients, arguments)."""
    import jax
    import jax.numpy as jnp

    from jaxformer.ops import linear_cross_entropy

    def dense(x_BTD, table_VD, labels_BT):
        logits_BTV = jnp.einsum(
            "btd,vd->btv", x_BTD, table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32
        )
        label_BT = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - label_BT)

    def chunked(x_BTD, table_VD, labels_BT):
        loss_sum, weight_sum, _ = linear_cross_entropy(x_BTD, table_VD, labels_BT)
        return loss_sum / weight_sum

    rng = np.random.default_rng(0)
    x_BTD = jnp.asarray(rng.standard_normal((B, T, width), dtype=np.float32), dtype)
    table_VD = jnp.asarray(0.02 * rng.standard_normal((vocab, width), dtype=np.float32))
    labels_BT = jnp.asarray(rng.integers(0, vocab, (B, T), dtype=np.int32))
    function = jax.jit(jax.value_and_grad({"dense": dense, "chunked": chunked}[name], (0, 1)))
    arguments = x_BTD, table_VD, labels_BT
    return function.lower(*arguments).compile(), arguments


def resident(field: str) -> int:
    """Returns this process's resident memory in bytes: now (VmRSS) or at its peak (VmHWM)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def resident_growth(name: str, args) -> int:
    """Returns by how many bytes a fresh process's peak grows when it runs the op once."""
    command = [sys.executable, "-m", __spec__.name, "--peak-of", name, "--vocab", str(args.vocab)]
    command += ["--width", str(args.width), "--dtype", args.dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the process of {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import jax

    if args.peak_of:
        function, arguments = build(args.peak_of, args.vocab, args.width, args.dtype)
        with open("/proc/self/clear_refs", "w") as reset:  # Linux: forgets the compiler's peak
            reset.write("5")
        before = resident("VmRSS")
        jax.block_until_ready(function(*arguments))
        print(json.dumps(resident("VmHWM") - before))
        return

    sides = {name: build(name, args.vocab, args.width, args.dtype) for name in NAMES}
    results = {name: jax.device_get(function(*given)) for name, (function, given) in sides.items()}
    (want, want_gradients), (got, got_gradients) = results["dense"], results["chunked"]
    loose = 1.0 if args.dtype == "float32" else 1000.0
    np.testing.assert_allclose(got, want, rtol=1e-6 * loose)
    for ours, theirs in zip(got_gradients, want_gradients, strict=True):
        ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * loose * np.abs(theirs).max())
    print(f"{B}x{T} tokens, D={args.width}, V={args.vocab}, {args.dtype}: losses {want:.6f} and "
          f"{got:.6f}, gradients equal")  # fmt: skip

    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(args.rounds):
        for name in NAMES if number % 2 == 0 else reversed(NAMES):
            function, given = sides[name]
            start = time.perf_counter()
            jax.block_until_ready(function(*given))
            times[name].append(time.perf_counter() - start)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    planned, results_size = {}, 0
    for name, (function, _) in sides.items():
        memory = function.memory_analysis()
        planned[name], results_size = memory.temp_size_in_bytes, memory.output_size_in_bytes
    grown = {name: resident_growth(name, args) for name in NAMES}
    for name in NAMES:
        print(
            f"  {name:8s} {1e3 * seconds[name]:8.0f} ms   planned {planned[name] / 1e6:7.1f} MB   "
            f"resident + {grown[name] / 1e6:7.1f} MB (of it results {results_size / 1e6:.0f} MB)"
        )
    for label, values, target in (
        ("time", seconds, 1.1), ("planned memory", planned, 0.15), ("resident peak", grown, None),
    ):  # fmt: skip
        aim = "" if target is None else f" (target <= {target})"
        print(f"  {label}: {values['chunked'] / values['dense']:.3f} of dense{aim}")


if __name__ == "__main__":
    main()
