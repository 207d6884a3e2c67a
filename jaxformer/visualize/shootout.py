"""Ways to attend against each other: accuracy against the time of a step, and cost over length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter, NullLocator

from jaxformer.visualize.style import COLOURS, FAINT, INK, figure, plain

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
# As many variants as there are need more colours than style.py has; marks tell them apart too.
_COLOURS = (*COLOURS, "#8C510A", "#762A83", "#6E6E6E")
_LEADER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "relpos": (0.0, 0.5)}
_SMALLEST, _LARGEST = 30.0, 280.0  # areas of marks, in square points


def shootout(rows: Sequence[dict[str, Any]], *, title: str = "") -> Figure:
    """Returns a figure of one panel for each task, and two for time and memory over length.

    In a task's panel a mark stands for a variant: to the left is faster, higher is better, a larger
    area is more memory. A variant has one colour and one form of mark in all panels.

    Args:
      rows: each has "part" ("score" or "cost"), "task", "variant" and "length"; scores have
        "accuracy", "step_seconds", "memory_bytes" and maybe "largest_class", costs the latter two
        without it. Rows without these, which failed or were skipped, are named in a line below.
      title: above the figure.

    Raises:
      ValueError: nothing to draw.
    """
    scores = [row for row in rows if row["part"] == "score" and "accuracy" in row]
    costs = [row for row in rows if row["part"] == "cost" and "step_seconds" in row]
    if not scores and not costs:
        raise ValueError("shootout: there is no row to draw")
    names = list(dict.fromkeys(row["variant"] for row in rows))
    looks = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(names)
    }
    tasks = list(dict.fromkeys(row["task"] for row in scores))
    lines = [bool(tasks), bool(costs)]
    fig = figure(max(3.6 * max(len(tasks), 2 * bool(costs)), 7.2), 0.6 + 3.5 * sum(lines))
    parts = iter(fig.subfigures(sum(lines), 1, squeeze=False)[:, 0])
    if tasks:
        panels = np.atleast_1d(next(parts).subplots(1, len(tasks)))
        for axes, task in zip(panels, tasks, strict=True):
            _accuracy(axes, task, [row for row in scores if row["task"] == task], looks)
        panels[0].set_ylabel("accuracy", color=INK)
    if costs:
        left, right = next(parts).subplots(1, 2)
        _over_length(left, costs, "step_seconds", 1e3, "ms a step, one row", looks)
        _over_length(right, costs, "memory_bytes", 2.0**-20, "MiB, one row", looks)
    lost = dict.fromkeys(row["variant"] for row in rows if "error" in row)
    if title or lost:
        words = f"failed, see the table: {', '.join(lost)}" if lost else ""
        fig.suptitle("   ".join(filter(None, (title, words))), x=0.01, ha="left", fontsize=10,
                     color=INK)  # fmt: skip
    return fig


def _accuracy(axes: Axes, task: str, rows: list[dict[str, Any]], looks: dict[str, dict]) -> None:
    plain(axes)
    axes.grid(axis="x", color="#F0F0F0", linewidth=0.8)
    x = np.array([1e3 * row["step_seconds"] for row in rows])
    y = np.array([row["accuracy"] for row in rows])
    memory = np.array([row["memory_bytes"] for row in rows], np.float64)
    areas = _SMALLEST + (_LARGEST - _SMALLEST) * memory / memory.max()
    axes.set_xscale("log")
    chance = next((row["largest_class"] for row in rows if "largest_class" in row), None)
    drawn = [*y, *([] if chance is None else [chance])]
    low, high = min(drawn), max(drawn)
    room = max(0.12 * (high - low), 0.01)
    axes.set_ylim(low - room, high + 1.6 * room)
    first, last = x.min() / 1.35, x.max() * 1.25
    axes.set_xlim(first, first * (last / first) ** 1.5)  # names stand right of all marks
    names = [
        (row["variant"], place, height, looks[row["variant"]]["color"])
        for row, place, height in zip(rows, x, y, strict=True)
    ]
    if chance is not None:
        axes.plot([first, last], [chance] * 2, color=FAINT, linestyle=":", linewidth=1.2, zorder=1)
        names.append(("largest class", last, chance, FAINT))
    for row, place, height, area in zip(rows, x, y, areas, strict=True):
        look = looks[row["variant"]]
        axes.scatter(
            [place], [height], s=[area], marker=look["marker"], color=look["color"], alpha=0.75,
            linewidths=0.8, edgecolors="white", zorder=3,
        )  # fmt: skip
    for text in _column(axes, names, 0.68):
        text.set_in_layout(False)  # the axis has room for it
    _decades(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel("ms a step", color=INK)
    sizes = f"{memory.min() / 2**20:,.0f} to {memory.max() / 2**20:,.0f} MiB"
    axes.set_title(f"{task}, T = {rows[0]['length']:,}", loc="left", fontsize=10.5, color=INK,
                   fontweight="bold")  # fmt: skip
    axes.annotate(f"area: {sizes}", (1, 1), xycoords="axes fraction", xytext=(0, 4),
                  textcoords="offset points", ha="right", fontsize=8, color=FAINT)  # fmt: skip


def _over_length(
    axes: Axes, rows: list[dict[str, Any]], key: str, factor: float, label: str, looks: dict
) -> None:
    plain(axes)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ends = []
    for name, look in looks.items():
        found = sorted((r["length"], r[key] * factor) for r in rows if r["variant"] == name)
        if found:
            lengths, values = zip(*found, strict=True)
            axes.plot(lengths, values, color=look["color"], marker=look["marker"], markersize=4.5,
                      linewidth=1.5, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
            # A line that ends early (its next point would not fit the memory) is led to its name.
            ends.append((name, lengths[-1], values[-1], look["color"]))
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_xlim(lengths[0] / 1.2, lengths[-1] * 1.2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("T, tokens", color=INK)
    axes.set_title(label, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    low, high = axes.get_ylim()
    _decades(axes.yaxis, low, high)
    axes.set_ylim(low, high)
    _column(axes, ends, 1.03)


def _column(axes: Axes, names: list[tuple[str, float, float, str]], at: float) -> list[Annotation]:
    """Writes names, each with its point and colour, in a column at a part of the axes' width."""
    points = axes.transData.transform([(x, y) for _, x, y, _ in names])
    heights = _apart(axes.transAxes.inverted().transform(points)[:, 1], 0.062)
    return [
        axes.annotate(
            name, (x, y), xytext=(at, height), textcoords="axes fraction", va="center",
            fontsize=8, color=colour, annotation_clip=False, arrowprops=_LEADER,
        )
        for (name, x, y, colour), height in zip(names, heights, strict=True)
    ]  # fmt: skip


def _decades(axis: Any, low: float, high: float) -> None:
    """Labels a logarithmic axis with round numbers, a few of them whatever its span."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**e for e in range(-4, 9) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    axis.set_ticks(ticks, [f"{t:,g}" for t in ticks])
    axis.set_minor_formatter(NullFormatter())


def _apart(heights: np.ndarray, step: float) -> np.ndarray:
    """Returns heights of 0 to 1, in their order, moved as little as keeps them `step` apart."""
    order = np.argsort(heights, kind="stable")
    wanted = np.asarray(heights, np.float64)[order] - step * np.arange(len(order))
    # What is left is to make them ascend: neighbours that do not share their mean.
    groups: list[list[float]] = []
    for value in wanted:
        groups.append([value, 1.0])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (a, n), (b, m) = groups[-2:]
            groups[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    level = np.concatenate([np.full(int(n), a) for a, n in groups])
    level = np.clip(level, step / 2, max(step / 2, 1 - step * (len(order) - 0.5)))
    moved = np.empty(len(order))
    moved[order] = level + step * np.arange(len(order))
    return moved
