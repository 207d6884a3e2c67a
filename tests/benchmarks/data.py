"""Tokens per second from the cache into batches, and from text into tokens. Run:

    python -m tests.benchmarks.data [--rounds 7] [--megabytes 4] [--json out.json]

Reading: our batches beside PyTorch's DataLoader over the same memory map and the same rows in the
same order, row by row as its documentation shows, and with rows fetched a batch at a time
(`__getitems__`). Both layouts: "windows", and "packed" with targets, weights, segment ids and
positions. Tokenising: from texts to the cache's file, beside the tokenizers library's own
`encode_batch` of the same texts with the same vocabulary, to lists of ids.

PyTorch is handed the order of the rows; ours is computed within the time that is measured. The
contents are compared before anything is timed. The sides take turns, a round each, so that both
see the same weather; medians are compared. All in one process; reading uses one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import data
from jaxformer.data import build, cache, documents, order, sources
from jaxformer.data.layouts import Packed

BATCH, LENGTH, STEPS = 32, 1024, 40
TARGET = 2e6  # tokens per second into batches
NAMES = ("tokens", "targets", "weights", "segment_ids", "positions")


class RowsOneByOne:
    """A torch map-style data set: one row of a split by number, sliced from the memory map."""

    def __init__(self, split: data.Split, shift: int):
        import torch

        self.layout, self.shift, self.tensor = split.layout, shift, torch.from_numpy

    def row(self, index: int) -> dict[str, np.ndarray]:
        layout, T = self.layout, self.layout.seq_len
        if not isinstance(layout, Packed):
            start = index * T + self.shift
            window = layout.tokens_N[start : start + T + 1].astype(np.int32)
            return {
                "tokens": window[:-1],
                "targets": window[1:],
                "weights": np.ones(T, np.float32),
            }
        row = {name: np.zeros(T, np.int32) for name in NAMES}
        row["weights"] = np.zeros(T, np.float32)
        row["tokens"][:] = row["targets"][:] = layout.pad
        first, stop = layout.first_piece[index], layout.first_piece[index + 1]
        column = 0
        for number, piece in enumerate(range(first, stop), 1):
            length, start = layout.length_P[piece], layout.start_P[piece]
            if start < 0:  # padding
                break
            at = slice(column, column + length)
            column += length
            scored = length - bool(layout.last_P[piece])
            where = slice(at.start, at.start + scored)
            row["tokens"][at] = layout.tokens_N[start : start + length]
            row["targets"][where] = layout.tokens_N[start + 1 : start + 1 + scored]
            row["weights"][where] = 1
            row["segment_ids"][at] = number
            row["positions"][at] = np.arange(length)
        return row

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self.tensor(array) for name, array in self.row(index).items()}


class RowsTogether(RowsOneByOne):
    """The same, with all rows of a batch fetched in one call."""

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        rows = [self.row(index) for index in indices]
        return {name: self.tensor(np.stack([r[name] for r in rows])) for name in rows[0]}


def torch_loader(kind: type[RowsOneByOne], split: data.Split, steps: int) -> Any:
    """Returns a DataLoader that yields the rows of steps 0 … steps-1 of seed 0."""
    import torch

    drawn = [_draw(split, step) for step in range(steps)]
    together = kind is RowsTogether
    return torch.utils.data.DataLoader(
        kind(split, int(drawn[0][1][0])),  # all steps lie in the first epoch: one shift
        batch_sampler=[rows.tolist() for rows, _ in drawn],
        collate_fn=(lambda batch: batch) if together else None,
    )


def _draw(split: data.Split, step: int) -> tuple[np.ndarray, np.ndarray]:
    layout, places = split.layout, np.arange(split.batch_size)
    return order.draw(step, split.batch_size, layout.num_rows, layout.max_shift, 0, places)


def interleave(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Runs every side in turn; returns the median of what each measured."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            seen[name].append(measure())
    return {name: statistics.median(values) for name, values in seen.items()}


def read_speed(layout: str, folder: str, rounds: int) -> dict[str, float]:
    """Tokens per second into batches of B × T, by side."""
    config = data.Config(layout=layout, batch_size=BATCH, seq_len=LENGTH, cache_dir=folder)
    split = data.load(config, say=lambda line: None).train
    steps = min(STEPS, split.num_rows // BATCH)

    def timed(run: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            for _ in run():
                pass
            return steps * BATCH * LENGTH / (time.perf_counter() - began)

        return measure

    sides = {"jaxformer": timed(lambda: (split.batch(step, 0) for step in range(steps)))}
    if importlib.util.find_spec("torch"):
        for name, kind in (("torch row by row", RowsOneByOne), ("torch together", RowsTogether)):
            loader = torch_loader(kind, split, steps)
            for step, batch in enumerate(loader):
                ours = split.batch(step, 0)
                for key, array in batch.items():
                    np.testing.assert_array_equal(array.numpy(), ours[key], err_msg=f"{name} {key}")
            sides[name] = timed(lambda loader=loader: loader)
    return interleave(sides, rounds)


def tokenise_speed(folder: str, rounds: int, megabytes: float) -> dict[str, float]:
    """Megabytes of text per second into tokens, by side."""
    config = data.Config(
        tokenizer="bpe:4096", cache_dir=folder, max_bytes=int(megabytes * 1e6), layout="packed"
    )
    tokenizer: Any = data.load(config, say=lambda line: None).tokenizer
    texts = [d.text for d in documents.read(sources.find("stdlib", config), config)]
    size = sum(len(text.encode()) for text in texts) / 1e6

    def ours(path: Path) -> cache.Writer:
        writer = cache.Writer(path, "train", tokenizer.vocab_size)
        divided = (("train", documents.Document(text, 0)) for text in texts)
        for _, batch in build.grouped(divided):
            parts = tokenizer.encode_batch([document.text for document in batch])
            writer.add(parts, [len(part) for part in parts], [-1] * len(parts), 0)
        writer.finish()
        return writer

    def library() -> list[list[int]]:
        encodings = tokenizer.library.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    with tempfile.TemporaryDirectory() as place:
        writer = ours(Path(place))
        written = np.fromfile(Path(place) / "train.bin", writer.dtype)
        np.testing.assert_array_equal(written, np.concatenate(library()))

        def timed(run: Callable[[], Any]) -> Callable[[], float]:
            def measure() -> float:
                began = time.perf_counter()
                run()
                return size / (time.perf_counter() - began)

            return measure

        sides = {"jaxformer": timed(lambda: ours(Path(place))), "tokenizers": timed(library)}
        return interleave(sides, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=4, help="of text to tokenise")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("windows", "packed"):
            speeds = figures[layout] = read_speed(layout, folder, options.rounds)
            print(f"{layout}, B{BATCH} T{LENGTH}, million tokens per second into batches")
            for name, speed in speeds.items():
                print(f"  {name:18}{speed / 1e6:9.1f}")
            enough = "reached" if speeds["jaxformer"] >= TARGET else "MISSED"
            rival = max((v for k, v in speeds.items() if k != "jaxformer"), default=float("nan"))
            ratio = speeds["jaxformer"] / rival
            print(f"  ratio to the faster torch {ratio:.2f}; target {TARGET / 1e6:.0f}: {enough}")
        speeds = figures["tokenise"] = tokenise_speed(folder, options.rounds, options.megabytes)
        ratio = speeds["jaxformer"] / speeds["tokenizers"]
        print(f"tokenising {options.megabytes} MB with a BPE of 4,096, MB per second")
        for name, speed in speeds.items():
            print(f"  {name:18}{speed:9.2f}")
        print(f"  ratio {ratio:.2f}; target 0.90: {'reached' if ratio >= 0.9 else 'MISSED'}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
