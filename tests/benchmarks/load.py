"""Seconds to load a published checkpoint of 500 MB: ours beside its parts and transformers. Run:

    python -m tests.benchmarks.load [--family gpt2] [--megabytes 500] [--rounds 7] [--json out.json]

Interleaved, from a file that the system has cached, into memory that is new to the process:

  ours           load_huggingface: checks, model, parameters in our layout
  read + place   each tensor's bytes read to a fresh array, jax.device_put, nothing else
  safetensors    safetensors.numpy.load_file, jax.device_put
  transformers   from_pretrained, in PyTorch, which maps the file and reads nothing yet
  transformers+  and each parameter copied once, so that the file has been read

GPT-2 stores its matrices as we do; Llama's and BERT's are transposed on the way, every one.
Target: ours <= 1.3 of read + place.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import interop
from jaxformer.interop import copying, huggingface, reader
from jaxformer.models import Model, decoder, encoder

_LLAMA: dict[str, Any] = dict(
    norm="rms_norm", norm_epsilon=1e-6, positions="rope", activation="silu", gated=True,
    bias=False, tie_embeddings=False,
)  # fmt: skip


def make(family: str, megabytes: float) -> Model:
    """Returns a model of about so many megabytes in float32, with the sizes usual at that size."""

    def build(layers: int) -> Model:
        sizes: dict[str, Any] = dict(num_layers=layers, width=768, num_heads=12)
        if family == "llama":
            keys: dict[str, Any] = dict(vocab_size=32000, feed_forward=2048, **_LLAMA)
            return decoder.make(decoder.Config(**sizes, **keys))
        if family == "bert":
            keys = dict(vocab_size=30522, num_token_types=2)
            return encoder.make(encoder.Config(**sizes, **keys))
        return decoder.make(decoder.Config(**sizes, vocab_size=50257))

    one, two = (size_of(jax.eval_shape(build(n).init, jax.random.key(0))) for n in (1, 2))
    return build(max(1, 1 + round((megabytes * 1e6 - one) / (two - one))))


def size_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def random_params(model: Model):
    """Returns parameters of random numbers, made on the host: their values do not matter here."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def ours(folder: Path):
    huggingface._shapes.cache_clear()  # a process loads a model once
    return jax.block_until_ready(interop.load_huggingface(folder)[1])


def read_and_place(folder: Path):
    arrays = {}
    for name, stored in reader.read_header(folder / reader.SINGLE).items():
        with open(stored.file, "rb", buffering=0) as file:
            file.seek(stored.begin)
            array = np.empty(stored.shape, copying.DTYPES[stored.dtype])
            file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        arrays[name] = jax.device_put(array)
    return jax.block_until_ready(arrays)


def by_safetensors(folder: Path):
    from safetensors.numpy import load_file

    return jax.block_until_ready(jax.device_put(load_file(folder / reader.SINGLE)))


def by_transformers(folder: Path):
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder)


def by_transformers_in_memory(folder: Path):
    """Its tensors are views of the file, read when they are first used: here that happens."""
    return [parameter.clone() for parameter in by_transformers(folder).parameters()]


WAYS: dict[str, Callable[[Path], object]] = {
    "ours": ours,
    "read + place": read_and_place,
    "safetensors": by_safetensors,
    "transformers": by_transformers,
    "transformers+": by_transformers_in_memory,
}


def fresh_memory() -> None:
    """Gives freed memory back to the system: a process that loads a model has none to use again.

    Without it a way whose arrays are below malloc's threshold for mapping (32 MB) is timed in pages
    that an earlier round has touched, and one with larger arrays is not; and JAX frees arrays in
    the background, into the time of whoever comes next.
    """
    gc.collect()
    time.sleep(0.1)
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", default="gpt2", choices=("gpt2", "llama", "bert"))
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="file to write")
    args = parser.parse_args()
    ways = list(WAYS)
    if find_spec("torch"):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    else:
        ways = [way for way in ways if not way.startswith("transformers")]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        model = make(args.family, args.megabytes)
        interop.save_huggingface(folder, model, random_params(model))
        megabytes = (folder / reader.SINGLE).stat().st_size / 1e6
        print(f"{args.family}, {model.config.num_layers} layers, {megabytes:.0f} MB")
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.rounds + 1):  # the first starts JAX and torch, and is not counted
            for way in ways if number % 2 == 0 else reversed(ways):
                fresh_memory()
                start = time.perf_counter()
                loaded = WAYS[way](folder)
                seconds = time.perf_counter() - start
                del loaded
                if number:
                    times[way].append(seconds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for name, seconds in medians.items():
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        print(f"  {name:13s} {seconds:6.3f} s ({spread}), {megabytes / seconds / 1e3:5.2f} GB/s")
    for name in ways[1:]:
        aim = " (target <= 1.3)" if name == "read + place" else ""
        ratio, best = medians["ours"] / medians[name], min(times["ours"]) / min(times[name])
        print(f"  ours: {ratio:.2f} of {name}{aim}; best by best {best:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps({"megabytes": megabytes, "seconds": medians}))


if __name__ == "__main__":
    main()
