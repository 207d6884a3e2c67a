"""The command that sets ways to attend against each other."""

from __future__ import annotations

from pathlib import Path

from jaxformer.cli.flags import parse, required, start_jax
from jaxformer.cli.lengths import whole_numbers
from jaxformer.errors import UserError


def compare(words: list[str]) -> None:
    """Trains and measures attention variants; writes results.jsonl, table.md and shootout.png."""
    flags, assignments = parse(
        words, "--config", "--out", "--variants", "--tasks", "--lengths", "--require_platform"
    )
    path = required(flags, "config", "compare", "experiments/attention_shootout.py")
    out = Path(flags["out"] or f"runs/{Path(path).stem}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    lengths = whole_numbers("--lengths", flags["lengths"]) if flags["lengths"] else None
    from jaxformer.train import compare as comparing
    from jaxformer.train.compared import table

    asked = comparing.load(
        path, assignments, variants=flags["variants"] or "", tasks=flags["tasks"] or "",
        lengths=lengths,
    )  # fmt: skip
    start_jax(flags["require_platform"])
    rows = comparing.run(asked, out)
    text = table(rows)
    (out / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    from jaxformer.visualize import shootout

    if not any("step_seconds" in row for row in rows):
        raise UserError(f"{out / 'table.md'} says why there is nothing to draw: no row succeeded")
    shootout(rows).savefig(out / "shootout.png", dpi=150)
    print(f"wrote {out / 'table.md'} and {out / 'shootout.png'}")
