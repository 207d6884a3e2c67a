"""Tokens a second of a BERT that reads sentences: padded, packed, and beside transformers. Run:

    python -m tests.benchmarks.packed [--size small] [--text sentences.txt] [--rounds 7]

Hidden states of all sentences are computed, from lists of ids on: making the rows counts. Only real
tokens count, [CLS] and [SEP] too.

  to max     --batch sentences at a time as they come, each padded to --length tokens
  to batch   --batch sentences at a time as they come, padded to the longest of them
  sorted     the same after all sentences were sorted by length: hardly any padding is left
  packed     whole sentences side by side in rows of --row tokens, which do not see each other;
             --rows of them at a time

PyTorch runs transformers' BertModel with its scaled_dot_product_attention, eager and compiled (with
dynamic shapes where rows differ in length); jaxformer loads the same random weights from the folder
that it writes. Every way's hidden states are compared with PyTorch's eager float32 before anything
is timed: within 1e-4 of the largest in float32. Each side lives in its own process, with as many
threads as it may use cores; they take turns, and medians are compared. jaxformer's process keeps
freed memory, as its commands do; --keep-memory gives PyTorch's the same setting.

Target: packed >= 1.2 x the best of PyTorch's to max and to batch, in float32.

B batch, T tokens of a row, D model width, P sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer import data
from jaxformer.data.packing import pack, ramp
from jaxformer.train.memory import keep_freed_memory

SIZES = {"small": (6, 384, 12), "base": (12, 768, 12)}  # layers, width, heads: MiniLM's and BERT's
WAYS = ("to max", "to batch", "sorted", "packed")
DTYPES = ("float32", "bfloat16")
VARIANTS = {
    "torch": [f"{mode} {dtype} {way}"
              for dtype in DTYPES for mode in ("eager", "compile") for way in WAYS[:3]],
    "jax": [f"{dtype} {way}" for dtype in DTYPES for way in ("to max", "packed")],
}  # fmt: skip
REFERENCE = "torch eager float32 to batch"


class Job(NamedTuple):
    """What both processes are told, once."""

    folder: str  # of the model, with sentences.npz
    length: int
    batch: int
    row: int
    rows: int

    def sentences(self) -> list[np.ndarray]:
        """Returns the ids of each sentence, between [CLS] and [SEP]."""
        with np.load(Path(self.folder) / "sentences.npz") as found:
            return np.split(found["ids"], found["cuts"])


class Rows(NamedTuple):
    """One call's input, and where each of its sentences stands in it."""

    tokens_BT: np.ndarray
    segment_ids_BT: np.ndarray
    sentences: np.ndarray
    row: np.ndarray
    column: np.ndarray


def padded(job: Job, sentences: list[np.ndarray], way: str) -> Iterator[Rows]:
    """Yields `batch` sentences at a time, one a row."""
    order_P = np.arange(len(sentences))
    if way == "sorted":
        order_P = np.argsort([-len(ids) for ids in sentences], kind="stable")
    for start in range(0, len(sentences), job.batch):
        chosen = order_P[start : start + job.batch]
        some = [sentences[number] for number in chosen]
        T = job.length if way == "to max" else max(len(ids) for ids in some)
        tokens_BT = np.zeros((len(some), T), np.int32)
        for row, ids in enumerate(some):
            tokens_BT[row, : len(ids)] = ids
        lengths_B = np.array([len(ids) for ids in some])
        segment_ids_BT = (np.arange(T) < lengths_B[:, None]).astype(np.int32)
        rows = np.arange(len(some))
        yield Rows(tokens_BT, segment_ids_BT, chosen, rows, 0 * rows)


def packed(job: Job, sentences: list[np.ndarray]) -> Iterator[Rows]:
    """Yields `rows` rows of `row` tokens at a time."""
    lengths_P = np.array([len(ids) for ids in sentences])
    row_P, column_P = pack(lengths_P, job.row)
    order_P = np.lexsort((column_P, row_P))
    number_P = np.empty_like(order_P)
    number_P[order_P] = ramp(np.bincount(row_P))
    B = job.rows
    total = -(-(int(row_P.max()) + 1) // B) * B  # the last call's rows are filled up
    tokens_RT, segment_ids_RT = np.zeros((2, total, job.row), np.int32)
    where = np.repeat(row_P * job.row + column_P, lengths_P) + ramp(lengths_P)
    tokens_RT.reshape(-1)[where] = np.concatenate(sentences)
    segment_ids_RT.reshape(-1)[where] = np.repeat(number_P + 1, lengths_P)
    for start in range(0, total, B):
        here = np.flatnonzero((row_P >= start) & (row_P < start + B))
        part = slice(start, start + B)
        yield Rows(tokens_RT[part], segment_ids_RT[part], here, row_P[here] - start, column_P[here])


def torch_side(job: Job, variant: str):
    """Returns rows -> hidden states [B, T, D], a tensor, of transformers' model."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    mode, dtype, way = variant.split(" ", 2)
    model = transformers.AutoModel.from_pretrained(
        job.folder, add_pooling_layer=False, dtype=getattr(torch, dtype)
    ).eval()
    forward = torch.compile(model, dynamic=way != "to max") if mode == "compile" else model

    def run(rows: Rows):
        with torch.inference_mode():
            return forward(
                input_ids=torch.from_numpy(rows.tokens_BT).long(),
                attention_mask=torch.from_numpy(rows.segment_ids_BT).long(),
            ).last_hidden_state

    return run


def jax_side(job: Job, variant: str):
    """Returns rows -> hidden states [B, T, D], an array on its way, of jaxformer's model."""
    import jax

    from jaxformer import interop

    model, params = interop.load_huggingface(job.folder, compute_dtype=variant.split()[0])
    apply = jax.jit(lambda params, batch: model.apply(params, batch).hidden_BTD)

    def run(rows: Rows):
        return apply(params, {"tokens": rows.tokens_BT, "segment_ids": rows.segment_ids_BT})

    return run


def work(side: str, job: Job, keep: bool) -> None:
    """A side's process: reads {"variant", "seconds"} lines; answers with rates, first a check."""
    if side == "jax" or keep:
        keep_freed_memory()  # as jaxformer's commands do, before any threads start
    if side == "torch":
        import transformers

        transformers.logging.disable_progress_bar()
    sentences, runs = job.sentences(), {}
    tokens = sum(len(ids) for ids in sentences)

    def calls(variant: str) -> Iterator[Rows]:
        way = next(way for way in WAYS if variant.endswith(way))
        return packed(job, sentences) if way == "packed" else padded(job, sentences, way)

    for line in sys.stdin:
        order = json.loads(line)
        variant, answer = order["variant"], {}
        if variant not in runs:
            runs[variant] = (torch_side if side == "torch" else jax_side)(job, variant)
            hidden: list[Any] = [None] * len(sentences)
            seen = 0
            for rows in calls(variant):
                out_BTD = _numpy(runs[variant](rows))
                seen += rows.tokens_BT.size
                for number, row, column in zip(rows.sentences, rows.row, rows.column, strict=True):
                    hidden[number] = out_BTD[row, column : column + len(sentences[number])]
            np.save(order["out"], np.concatenate(hidden))
            answer["filled"] = tokens / seen
        else:
            rates, end = [], time.perf_counter() + order["seconds"]
            while not rates or time.perf_counter() < end:
                start = time.perf_counter()
                for rows in calls(variant):
                    out = runs[variant](rows)
                    if side == "jax":
                        out.block_until_ready()
                rates.append(tokens / (time.perf_counter() - start))
            answer["rates"] = rates
        print(json.dumps(answer), flush=True)


def _numpy(out: Any) -> np.ndarray:
    return (out.float().numpy() if hasattr(out, "float") else np.asarray(out, np.float32)).copy()


class Worker:
    """One side's process, which idles while the other runs."""

    def __init__(self, side: str, job: Job, keep: bool):
        command = [sys.executable, "-m", __spec__.name, "--worker", side, json.dumps(job)]
        self.log = Path(job.folder) / f"{side}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command + ["--keep-memory"] * keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )  # fmt: skip

    def ask(self, **order: Any) -> dict[str, Any]:
        """Sends an order and returns the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died; its words:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)


def read_sentences(path: str, most: int) -> list[str]:
    """Returns the lines of a file; of none, sentences of the standard library's docstrings."""
    if path:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    else:
        folder = Path(os.__file__).parent
        texts = (file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
        found = [text for file in texts for text in re.findall(r'"""([A-Z].*?)"""', file, re.S)]
        lines = [s for text in found for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)]
    lines = [" ".join(line.split()) for line in lines]
    lines = [line for line in lines if line]
    return lines[:: max(1, len(lines) // most)][:most]


def prepare(folder: Path, size: str, length: int, sentences: list[str], tokenizer: str) -> int:
    """Writes a random BERT and the ids of the sentences; returns the longest sentence's tokens."""
    import torch
    import transformers

    if tokenizer:
        words = data.load_tokenizer(tokenizer)
    else:
        from jaxformer.data import tokenizer_training

        words = tokenizer_training.train("wordpiece", 8000, sentences)
    layers, width, heads = SIZES[size]
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=words.vocab_size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    around = words.template()
    ids = [
        [*around.prefix, *row[: length - around.length].tolist(), *around.suffix]
        for row in words.encode_batch(sentences)
    ]
    lengths = np.array([len(row) for row in ids])
    np.savez(
        folder / "sentences.npz", ids=np.concatenate(ids).astype(np.int32),
        cuts=np.cumsum(lengths)[:-1],
    )  # fmt: skip
    print(
        f"{size}: {layers} layers of {width}; {len(ids)} sentences of {lengths.min()} to "
        f"{lengths.max()} tokens, mean {lengths.mean():.1f}, {lengths.sum():,} in all; "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    return int(lengths.max())


def check(workers: dict[str, Worker], names: list[str], folder: Path) -> dict[str, float]:
    """Compares every way's hidden states with the reference; returns the share of real tokens."""
    filled, reference = {}, None
    for name in sorted(names, key=lambda name: name != REFERENCE):
        side, _, variant = name.partition(" ")
        out = str(folder / "hidden.npy")
        filled[name] = workers[side].ask(variant=variant, out=out)["filled"]
        hidden = np.load(out)
        if reference is None:
            reference = hidden
        gap = float(np.abs(hidden - reference).max() / np.abs(reference).max())
        print(f"  {name:32s} {filled[name]:4.0%} real tokens, {gap:.1e} from the reference")
        if not gap <= (1e-4 if "float32" in name else 0.1):
            raise SystemExit(f"{name}: its hidden states are not those of {REFERENCE}")
    return filled


def report(rates: dict[str, list[float]]) -> dict[str, float]:
    """Prints medians and ratios; returns the medians."""
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"  {name:32s} {rate:9,.0f} tokens/s ({spread})")
    for ours in (name for name in medians if name.endswith("packed")):
        dtype = ours.split()[1]
        for ways in (("to max",), ("to max", "to batch"), ("sorted",)):
            theirs = [name for name in medians if dtype in name and name.endswith(ways)]
            theirs = [name for name in theirs if name.startswith("torch")]
            if theirs:
                best = max(theirs, key=lambda name: medians[name])
                aim = " (target >= 1.2)" if len(ways) == 2 and dtype == "float32" else ""
                print(
                    f"  {ours}: {medians[ours] / medians[best]:.2f} x {best}, the best padded "
                    f"{' or '.join(ways)}{aim}"
                )
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--text", default="", help="a sentence a line; default: docstrings")
    parser.add_argument("--tokenizer", default="", help="its folder; default: trained on the text")
    parser.add_argument("--sentences", type=int, default=512, help="most of them")
    parser.add_argument("--length", type=int, default=128, help="max, of a padded row")
    parser.add_argument("--batch", type=int, default=32, help="sentences of a padded call")
    parser.add_argument("--row", type=int, default=128, help="tokens of a packed row")
    parser.add_argument("--rows", type=int, default=8, help="rows of a packed call")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--only", default="", help="comma-separated, 'torch eager float32 to max'")
    parser.add_argument("--keep-memory", action="store_true", help="in PyTorch's process too")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker[0], Job(*json.loads(args.worker[1])), args.keep_memory)
        return
    names = [f"{side} {variant}" for side in VARIANTS for variant in VARIANTS[side]]
    only = [name.strip() for name in args.only.split(",") if name]
    names = [name for name in names if not only or name in (*only, REFERENCE)]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        sentences = read_sentences(args.text, args.sentences)
        longest = prepare(folder, args.size, args.length, sentences, args.tokenizer)
        job = Job(root, args.length, args.batch, max(args.row, longest), args.rows)
        workers = {side: Worker(side, job, args.keep_memory) for side in VARIANTS}
        check(workers, names, folder)
        rates: dict[str, list[float]] = {name: [] for name in names}
        for number in range(args.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                side, _, variant = name.partition(" ")
                rates[name] += workers[side].ask(variant=variant, seconds=args.seconds)["rates"]
    medians = report(rates)
    if args.json:
        Path(args.json).write_text(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
