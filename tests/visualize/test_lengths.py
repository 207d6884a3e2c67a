"""The figure shows the perplexities that went in, and tells runs and schemes apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxformer.visualize import perplexity_over_length


@dataclasses.dataclass
class Curve:
    name: str
    trained: int
    lengths: tuple[int, ...]
    losses: tuple[float, ...]


def test_data_in_is_data_drawn():
    given = [
        Curve("rope", 64, (64, 128, 256), (2.0, 3.0, 4.0)),
        Curve("rope, ntk", 64, (128, 256), (2.1, 2.2)),
        Curve("alibi", 64, (64, 128, 256), (2.05, 2.0, 2.0)),
    ]
    axes = perplexity_over_length(given, title="a title").axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2 or line.get_marker() == "o"]
    for curve, line in zip(given, drawn, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), curve.lengths)
        np.testing.assert_allclose(line.get_ydata(), np.exp(curve.losses))
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()
    assert {"rope", "rope, ntk", "alibi", "trained"} <= {text.get_text() for text in axes.texts}
    # The names stand in the order of the lines' ends, none upon another.
    names = [text for text in axes.texts if text.get_text() != "trained"]
    heights = {text.get_text(): text.xy[1] for text in names}
    assert heights["rope"] > heights["rope, ntk"] > heights["alibi"]
    assert min(abs(np.diff(sorted(heights.values())))) >= 0.05


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no curve"):
        perplexity_over_length([])
