"""The figure shows the rows that went in, one look a variant, and names what failed."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxformer.visualize import shootout

NAMES = ("dense", "window", "linear")


def score(task: str, name: str, accuracy: float, seconds: float, memory: float) -> dict:
    return {
        "part": "score", "task": task, "variant": name, "length": 512, "accuracy": accuracy,
        "step_seconds": seconds, "memory_bytes": memory * 2**20, "largest_class": 0.1,
    }  # fmt: skip


def cost(name: str, length: int, seconds: float, memory: float) -> dict:
    return {
        "part": "cost", "task": "", "variant": name, "length": length, "step_seconds": seconds,
        "memory_bytes": memory * 2**20,
    }  # fmt: skip


@pytest.fixture
def rows():
    scores = [score(t, n, 0.2 + 0.1 * i, 0.1 * (i + 1), 10.0 * (i + 1))
              for t in ("listops", "needle") for i, n in enumerate(NAMES)]  # fmt: skip
    costs = [cost(n, t, t / 1e4 * (i + 1), t / 64 + i)
             for i, n in enumerate(NAMES) for t in (512, 1024, 2048)]  # fmt: skip
    failed = {"part": "score", "task": "needle", "variant": "mine", "length": 512, "error": "no"}
    skipped = {"part": "cost", "task": "", "variant": "dense", "length": 4096, "skipped": "big"}
    return [*scores, failed, *costs, skipped]


def test_data_in_is_data_drawn(rows):
    fig = shootout(rows, title="a title")
    listops, _, time, memory = fig.axes
    marks = [(*m.get_offsets()[0], m.get_sizes()[0]) for m in listops.collections]
    np.testing.assert_allclose([m[0] for m in marks], [100, 200, 300])
    np.testing.assert_allclose([m[1] for m in marks], [0.2, 0.3, 0.4])
    assert np.allclose(np.diff([m[2] for m in marks], n=2), 0) and marks[0][2] < marks[2][2]
    for axes, key, factor in ((time, "step_seconds", 1e3), (memory, "memory_bytes", 2.0**-20)):
        for name, line in zip(NAMES, axes.lines, strict=True):
            found = [r for r in rows if r["part"] == "cost" and r["variant"] == name and key in r]
            np.testing.assert_array_equal(line.get_xdata(), [r["length"] for r in found])
            np.testing.assert_allclose(line.get_ydata(), [r[key] * factor for r in found])
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "mine" in fig.get_suptitle() and "a title" in fig.get_suptitle()
    words = {text.get_text() for text in listops.texts}
    assert {*NAMES, "largest class", "area: 10 to 30 MiB"} <= words


def test_a_variant_looks_alike_everywhere_and_like_no_other(rows):
    names = [f"variant {i}" for i in range(10)]
    rows = [score("x", n, 0.1 * i, 1.0 + i, 1.0) for i, n in enumerate(names)]
    rows += [cost(n, t, 1.0 + i, 1.0) for i, n in enumerate(names) for t in (512, 1024)]
    task, time, _ = shootout(rows).axes
    marks = [to_hex(m.get_facecolor()[0]) for m in task.collections]
    assert marks == [to_hex(line.get_color()) for line in time.lines]
    assert len(set(marks)) == 10 == len({line.get_marker() for line in time.lines})
    # Lines that end at one height have names one above the other.
    fig = time.figure.figure
    fig.canvas.draw()
    heights = sorted(text.get_window_extent().y0 for text in time.texts)
    assert min(np.diff(heights)) > 8


@pytest.mark.filterwarnings("error")
def test_all_that_is_drawn_has_room():
    """Scores all below the largest class, at one and the same time; one length; equal costs."""
    rows = [score("x", n, 0.05, 1.0, 1.0) for n in NAMES] + [cost(n, 512, 1.0, 1.0) for n in NAMES]
    fig = shootout(rows)
    fig.draw_without_rendering()
    low, high = fig.axes[0].get_ylim()
    assert low < 0.05 < 0.1 < high
    assert all(axes.get_position().width > 0.2 for axes in fig.axes)


def test_one_part_alone_is_drawn(rows):
    assert len(shootout([r for r in rows if r["part"] == "score"]).axes) == 2
    assert len(shootout([r for r in rows if r["part"] == "cost"]).axes) == 2


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no row"):
        shootout([{"part": "score", "task": "x", "variant": "y", "length": 1, "error": "z"}])
