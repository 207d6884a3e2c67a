"""Each map shows its own layer and head. L=2, N=3, T=S=5."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer.visualize import attention_maps

TOKENS = ["def", " f", "(", "\n", "$x$"]


def weights(*shape):
    x = np.random.default_rng(0).random(shape)
    return x / x.sum(-1, keepdims=True)


def test_data_in_is_data_drawn():
    weights_LNTS = weights(2, 3, 5, 5)
    figure = attention_maps(weights_LNTS, TOKENS, title="text")
    maps = figure.axes[:6]
    for i, axes in enumerate(maps):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), weights_LNTS[i // 3, i % 3], rtol=1e-6)
        assert image.get_clim() == (0, 1)  # one scale for all
    assert [axes.get_title() for axes in maps[:3]] == ["head 0", "head 1", "head 2"]
    assert [maps[0].get_ylabel(), maps[3].get_ylabel()] == ["layer 0", "layer 1"]
    assert [t.get_text() for t in maps[3].get_xticklabels()] == ["def", "␣f", "(", "↵", r"\$x\$"]
    assert [t.get_text() for t in maps[0].get_yticklabels()] == ["def", "␣f", "(", "↵", r"\$x\$"]


def test_cross_attention_has_its_own_queries():
    figure = attention_maps(weights(1, 1, 2, 5), TOKENS, query_tokens=["a", "b"])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]


@pytest.mark.slow
def test_many_maps_are_not_crowded_with_labels(tmp_path):
    for token, seen in {" w": "␣w␣w␣w", "w": "w w w"}.items():  # words stay apart
        figure = attention_maps(weights(12, 12, 40, 40), [token] * 40)
        assert len(figure.axes) == 145 and not figure.axes[0].get_yticklabels()
        assert figure.get_figwidth() < 16
        assert seen in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 5, 5), r"\[L, N, T, S\]"), ((1, 1, 4, 4), "T=4")]
)
def test_shapes_are_checked(shape, words):
    with pytest.raises(ValueError, match=words):
        attention_maps(weights(*shape), TOKENS)


def test_importing_it_opens_no_window_system():
    """Only matplotlib's figure is used, so it works without a display and in a notebook."""
    import subprocess
    import sys

    code = "import sys, jaxformer.visualize; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
