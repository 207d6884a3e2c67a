"""The rows of a comparison as lines and as tables; compare.py makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# {"part": "score" or "cost", "task", "variant", "length", "attention", "seconds"} and either what
# was found, or "error" (it failed), or "skipped" (it needs too much memory).
Row = dict[str, Any]


def told(row: Row) -> str:
    """Returns a row as one line for the user."""
    where = f"{row['task'] or 'a row':<10} {row['variant']:<16} {row['length']:>6,} tokens  "
    if why := row.get("error") or row.get("skipped"):
        return f"{where}{'failed: ' if 'error' in row else ''}{why}"
    score = f"accuracy {row['accuracy']:.3f}, " if "accuracy" in row else ""
    return (
        f"{where}{score}{1e3 * row['step_seconds']:,.1f} ms a step, "
        f"{row['memory_bytes'] / 2**20:,.0f} MiB ({row['seconds']:.0f} s)"
    )


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as tables in Markdown: one a task, one of the time and one of the memory."""
    parts = []
    scores = [row for row in rows if row["part"] == "score"]
    for task in dict.fromkeys(row["task"] for row in scores):
        of_task = [row for row in scores if row["task"] == task]
        largest = next((r["largest_class"] for r in of_task if "largest_class" in r), 0.0)
        lines = [
            f"## {task}: {of_task[0]['length']:,} tokens, largest class {largest:.3f}\n",
            "| attention | parameters | feed-forward | accuracy | ms a step | MiB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in of_task:
            if why := row.get("error") or row.get("skipped"):
                lines.append(f"| {row['attention']} | {_cell(why)} | | | | |")
            else:
                lines.append(
                    f"| {row['attention']} | {row['parameters']:,} | {row['feed_forward']:,} | "
                    f"{row['accuracy']:.3f} | {1e3 * row['step_seconds']:,.1f} | "
                    f"{row['memory_bytes'] / 2**20:,.0f} |"
                )
        parts.append("\n".join(lines))
    costs = [row for row in rows if row["part"] == "cost"]
    lengths = sorted({row["length"] for row in costs})
    quantities = (
        ("step_seconds", 1e3, "ms a step", ",.1f"),
        ("memory_bytes", 2.0**-20, "MiB", ",.0f"),
    )
    for key, factor, unit, form in quantities if costs else ():
        lines = [
            f"## {unit} over tokens, a row a device\n",
            f"| attention | {' | '.join(f'{n:,}' for n in lengths)} |",
            f"|---|{'---:|' * len(lengths)}",
        ]
        for name in dict.fromkeys(row["variant"] for row in costs):
            found = {row["length"]: row for row in costs if row["variant"] == name}
            cells = []
            for length in lengths:
                row = found.get(length, {})
                why = row.get("error") or row.get("skipped") or ""
                cells.append(format(row[key] * factor, form) if key in row else _cell(why))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "/")
