"""Perplexity over the length of the text that a model reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from jaxformer.visualize.style import COLOURS, FAINT, INK, figure, plain

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))


def perplexity_over_length(curves: Sequence[Any], *, title: str = "") -> Figure:
    """Returns a figure of one line for each curve, both axes logarithmic.

    Curves whose names begin alike up to a comma ("rope", "rope, ntk") share a colour. A vertical
    line stands where the models were trained.

    Args:
      curves: each has a name, the trained length, lengths in tokens and losses in nats per token.
      title: above the figure.

    Raises:
      ValueError: no curves.
    """
    if not curves:
        raise ValueError("perplexity_over_length: there is no curve to draw")
    fig = figure(7.2, 4.4)
    axes = fig.add_subplot()
    plain(axes)
    families = list(dict.fromkeys(curve.name.partition(",")[0] for curve in curves))
    counts = dict.fromkeys(families, 0)
    ends: list[tuple[float, str, str]] = []
    for curve in curves:
        family = curve.name.partition(",")[0]
        colour = COLOURS[families.index(family) % len(COLOURS)]
        values = np.exp(np.minimum(np.asarray(curve.losses, np.float64), 50.0))
        axes.plot(
            curve.lengths, values, color=colour, linestyle=_DASHES[counts[family] % len(_DASHES)],
            marker="o", markersize=3.5, linewidth=1.6,
        )  # fmt: skip
        counts[family] += 1
        ends.append((float(values[-1]), curve.name, colour))
    lengths = sorted({n for curve in curves for n in curve.lengths})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    ticks = [t * 10**e for e in range(-1, 7) for t in (1, 2, 3, 5, 7) if low <= t * 10**e <= high]
    if len(ticks) < 3:
        ticks = [float(f"{x:.3g}") for x in np.geomspace(low, high, 5)[1:-1]]
    axes.set_yticks(ticks, [f"{t:,g}" for t in ticks])
    axes.yaxis.set_minor_formatter(NullFormatter())
    for trained in sorted({curve.trained for curve in curves}):
        axes.axvline(trained, color=FAINT, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            "trained", (trained, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
            textcoords="offset points", fontsize=8, color=FAINT,
        )  # fmt: skip
    ends.sort()
    heights = _apart(np.log([value / low for value, _, _ in ends]) / np.log(high / low))
    for place, (_, name, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            name, (1, place), xycoords="axes fraction", xytext=(8, 0), va="center",
            textcoords="offset points", fontsize=9, color=colour, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlabel("tokens read at once", color=INK)
    axes.set_ylabel("perplexity (per token)", color=INK)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    return fig


def _apart(heights: np.ndarray, step: float = 0.055) -> np.ndarray:
    """Returns rising heights moved as little as keeps names, `step` high, from touching."""
    moved = np.array(heights, np.float64)
    groups = [[i] for i in range(len(moved))]
    while True:  # names that touch become one group, centred where they all want to be
        centres = [float(np.mean(heights[group])) for group in groups]
        for group, centre in zip(groups, centres, strict=True):
            moved[group] = centre + step * (np.arange(len(group)) - (len(group) - 1) / 2)
        touching = [i for i in range(len(groups) - 1)
                    if moved[groups[i + 1][0]] - moved[groups[i][-1]] < step * 0.999]  # fmt: skip
        if not touching:
            return moved
        groups[touching[0] : touching[0] + 2] = [groups[touching[0]] + groups[touching[0] + 1]]
