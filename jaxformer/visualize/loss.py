"""Loss curves of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxformer.visualize.style import COLOURS, FAINT, INK, figure, plain

PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # behind words, over grid lines

Records = Sequence[Mapping[str, Any]]
LABEL = "loss (nats per token)"
# What the loss of an objective is counted in, where it is no mean over predicted tokens.
_LABELS = {
    "classify": "loss (nats per row)",
    "extractive_qa": "loss (nats per row)",
    "tag": "loss (nats per tag)",
    "bert_pretraining": "loss (nats per token + nats per pair)",
    "replaced_token": "loss (nats per token, weighted sum of both models)",
}


class End(NamedTuple):
    """The last and the best validation value of a curve."""

    value: float
    step: int
    best: float
    best_step: int
    colour: str


def loss_curves(
    runs: Mapping[str, Records],
    *,
    baseline: tuple[str, float] | None = None,
    resumes: Sequence[int] = (),
    metric: str = "loss",
    ylabel: str = LABEL,
    title: str = "",
) -> Figure:
    """Returns a figure of the training and validation loss against the step.

    The training loss stands raw and light behind its running mean; the scale follows the run after
    its first steps, so that a high start does not flatten the rest.

    Args:
      runs: name -> records, each a mapping with "step", "split" ("train" or "validation") and the
        metric.
      baseline: name and value of a horizontal line, such as the unigram entropy.
      resumes: steps at which the run went on after a stop.
      metric: the value to draw.
      ylabel: its name and unit.
      title: above the figure; by default the run's name, if there is one run.
    """
    fig = figure(7.2, 4.2)
    axes = fig.add_subplot()
    plain(axes)
    shown: list[float] = [baseline[1]] if baseline else []
    last_step = 1
    ends: list[End] = []
    for i, (name, records) in enumerate(runs.items()):
        alone = len(runs) == 1
        colour = COLOURS[i % len(COLOURS)]
        accent = COLOURS[1] if alone else colour
        steps, values = _series(records, "train", metric)
        if steps.size:
            smooth = running_mean(values, max(1, steps.size // 40))
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8, label="_raw")
            axes.plot(steps, smooth, color=colour, linewidth=1.8, label="train" if alone else name)
            shown += [*smooth[smooth.size // 50 :]]
            finite = values[np.isfinite(values)]
            shown += [float(np.quantile(finite, 0.02))] if finite.size else []
            last_step = max(last_step, int(steps[-1]))
        steps, values = _series(records, "validation", metric)
        if steps.size:
            axes.plot(
                steps,
                values,
                color=accent,
                marker="o",
                markersize=4,
                linewidth=1.4 if alone else 0,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=4,
                label="validation" if alone else f"_{name} validation",
            )
            shown += [*values[values.size // 50 :]]
            last_step = max(last_step, int(steps[-1]))
            best = int(np.nanargmin(values)) if np.isfinite(values).any() else -1
            ends.append(End(values[-1], steps[-1], values[best], steps[best], accent))
    _scale(axes, shown, last_step)
    _annotate(axes, ends, last_step)
    if baseline:
        axes.axhline(
            baseline[1], color=INK, linestyle=(0, (5, 3)), linewidth=1.1, label="_baseline"
        )
        axes.annotate(
            f"{baseline[0]} {baseline[1]:.2f}",
            (1, baseline[1]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=INK,
            bbox=PAPER,
        )
    for k, step in enumerate(resumes):
        axes.axvline(
            step, color=FAINT, linestyle=":", linewidth=1.2, label="_" if k else "resumed", zorder=1
        )
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if not title and len(runs) == 1:
        title = next(iter(runs))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    if len(runs) > 1 and ends:
        axes.plot([], [], color=FAINT, marker="o", markersize=4, linewidth=0, label="validation")
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # outside, where it can never lie over the data
        fig.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return fig


def loss_label(*configs: Mapping[str, Any]) -> str:
    """Returns the loss's name and unit for an axis; only "loss" where runs differ in it.

    Args:
      configs: of each run, its config as it is saved; an empty one is that of a language model.
    """
    labels = set()
    for config in configs:
        objective = config.get("objective", {}).get("name", "")
        numbers = objective == "classify" and config.get("data", {}).get("labels") == "value"
        label = _LABELS.get(objective, LABEL)
        labels.add("loss (squared error per row)" if numbers else label)
    return labels.pop() if len(labels) == 1 else "loss"


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Returns the mean of each value with `reach` neighbours on both sides (fewer at the ends).

    Centred, so that it does not lag behind the validation loss; what is not finite is left out.
    """
    good = np.isfinite(values)
    total = np.concatenate(([0.0], np.cumsum(np.where(good, values, 0.0))))
    count = np.concatenate(([0], np.cumsum(good)))
    index = np.arange(values.size)
    # At the start as few after as before, or the steep fall there is bent; at the end the curve is
    # flat, and a whole window before it is quieter.
    before = np.minimum(reach, index)
    after = np.minimum(before, values.size - 1 - index)
    low, high = index - before, index + after + 1
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)


def _series(records: Records, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"], r[metric]) for r in records if r["split"] == split and metric in r]
    steps = np.array([step for step, _ in pairs], np.int64)
    return steps, np.array([value for _, value in pairs], np.float64)


def _scale(axes: Axes, shown: list[float], last_step: int) -> None:
    axes.set_xlim(0, last_step * 1.02)
    finite = [value for value in shown if np.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        room = max(0.06 * (high - low), 0.01 * abs(high), 1e-6)
        axes.set_ylim(low - 1.6 * room, high + room)


def _annotate(axes: Axes, ends: list[End], last_step: int) -> None:
    """Writes the last validation loss beside each curve's end, and the best if it was earlier."""
    if not ends:
        return
    axes.set_xlim(0, last_step * 1.14)
    low, high = axes.get_ylim()
    line = 0.055 * (high - low)  # the height of a line of text
    above, beside = -np.inf, -np.inf
    for end in sorted(ends, key=lambda end: end.value):
        if abs(end.step - beside) > 0.14 * last_step:
            above = -np.inf  # far from the text below it: no need to make room
        beside = end.step
        text = f"{end.value:.3f}"
        if end.best < end.value:
            text += f"\nbest {end.best:.3f}\nat {end.best_step:,}"
        height = line * (1 + text.count("\n"))
        middle = max(end.value, above + height / 2)
        above = middle + height / 2
        axes.annotate(
            text,
            (end.step, middle),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=end.colour,
            fontweight="bold",
            bbox=PAPER,
        )
