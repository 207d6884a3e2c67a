"""How all figures look."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart by all common kinds of colour blindness, and in this order in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#222222", "#8A8A8A"


def figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in inches, which belongs to no window."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def plain(axes: Axes) -> None:
    """Leaves of an axes' frame what carries information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
