"""Every way to attend beside what it can do. Writes the table of the documentation:

python -m tests.conformance.matrix
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance import (
    rows_distance,
    rows_global,
    rows_heads,
    rows_linear,
    rows_retrieved,
    rows_softmax,
    rows_sparse,
)
from tests.conformance.case import CELLS
from tests.conformance.variant import Variant

VARIANTS: list[Variant] = [
    *rows_softmax.ROWS, *rows_sparse.ROWS, *rows_global.ROWS, *rows_linear.ROWS,
    *rows_heads.ROWS, *rows_distance.ROWS, *rows_retrieved.ROWS,
]  # fmt: skip
README = Path(__file__).with_name("README.md")

_BEGINNING = """\
# What every way to attend can do

One test for each cell (`pytest tests/conformance`); this file is written by
`python -m tests.conformance.matrix`. A number stands where a variant cannot do a thing by its
definition: the reason is below, and the test there asserts that the function says so in one line
instead of computing something else.

"Truth" is what the values are compared with, computed over all pairs in float64: softmax attention
with the variant's mask (exact), or the published formula of what is not that (formula).
"""


def table() -> str:
    """Returns the README."""
    reasons: list[str] = []
    lines = [
        " | ".join(["| variant", "truth", *CELLS]) + " |",
        "|" + "---|" * (2 + len(CELLS)),
    ]
    for variant in VARIANTS:
        row = ["| " + variant.name, "exact" if variant.exact else "formula"]
        for cell in CELLS:
            why = variant.cannot.get(cell)
            if why and why not in reasons:
                reasons.append(why)
            row.append(f"{reasons.index(why) + 1}" if why else "✓")
        lines.append(" | ".join(row) + " |")
    asked = [f"- **{cell}**: {what}." for cell, (what, _) in CELLS.items()]
    numbered = [f"{n}. {why}" for n, why in enumerate(reasons, 1)]
    return "\n".join([_BEGINNING, *lines, "", *numbered, "", *asked, ""])


def main() -> None:
    README.write_text(table(), encoding="utf-8")
    print(README.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
