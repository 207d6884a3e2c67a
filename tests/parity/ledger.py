"""Prints the parity ledger as a table: `python -m tests.parity.ledger [FAMILY ...]`."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import jax

from tests.parity.case import GRADIENTS, LOGITS, Row, measure
from tests.parity.families import CASES

HEADER = ("family", "configuration", "logits", "left-padded", "alone", "gradients", "exported",
          "decoded", "by cache", "oracle's quirk")  # fmt: skip


def cells(row: Row) -> list[str]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.1e}"

    return [
        row.case.family, row.case.name, number(row.logits), number(row.left), number(row.alone),
        number(row.gradients), number(row.back), row.decoded or "–",
        number(row.cached), row.case.quirk,
    ]  # fmt: skip


def main(families: list[str]) -> int:
    """Measures every case (of the families named) and prints the table; 1 if a bound is broken."""
    print(
        f"Differences are relative to the oracle's largest value; bounds: logits {LOGITS:.0e}, "
        f"gradients {GRADIENTS:.0e}, decoded tokens all equal.\n"
    )
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    broken = []
    for case in CASES:
        if families and case.family.lower() not in [name.lower() for name in families]:
            continue
        # Compiled programs hold memory mappings, of which Linux allows a process 65,530: with those
        # of a hundred cases the next compile would abort.
        jax.clear_caches()
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = measure(case, Path(folder))
            except Exception as error:  # the other rows are still wanted
                if "--debug" in sys.argv:
                    raise
                broken.append(f"{case.id}: {type(error).__name__}: {error}")
                continue
        print("| " + " | ".join(cells(row)) + " |", flush=True)
        broken += [f"{case.id}: {complaint}" for complaint in row.complaints()]
    print(*(f"BROKEN {line}" for line in broken), sep="\n", end="\n" if broken else "")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if word != "--debug"]))
