"""The figure shows the numbers that went in."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer.visualize import loss_curves, loss_label
from jaxformer.visualize.loss import running_mean


def records(train, validation=()):
    made = [{"step": i + 1, "split": "train", "loss": x} for i, x in enumerate(train)]
    return made + [{"step": step, "split": "validation", "loss": x} for step, x in validation]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_data_in_is_data_drawn():
    rng = np.random.default_rng(0)
    train = 3 * np.exp(-np.arange(200) / 50) + rng.normal(size=200) * 0.1 + 1
    validation = [(100, 1.6), (200, 1.2)]
    drawn = lines(loss_curves({"run": records(train, validation)}))
    np.testing.assert_array_equal(drawn["_raw"].get_xdata(), np.arange(1, 201))
    np.testing.assert_array_equal(drawn["_raw"].get_ydata(), train)
    np.testing.assert_array_equal(drawn["validation"].get_xydata(), validation)
    smooth = drawn["train"].get_ydata()
    assert np.std(np.diff(smooth)) < np.std(np.diff(train)) / 3
    assert abs(smooth[100] - train[90:111].mean()) < 0.05


def test_labels_baseline_and_resumes():
    figure = loss_curves(
        {"run": records([3.0, 2.0, 1.5], [(1, 1.4), (3, 1.625)])},
        baseline=("unigram entropy", 2.5),
        resumes=(2,),
    )
    (axes,) = figure.axes
    assert axes.get_ylabel() == "loss (nats per token)" and axes.get_xlabel() == "step"
    assert axes.get_title(loc="left") == "run"
    drawn = lines(figure)
    assert set(drawn["_baseline"].get_ydata()) == {2.5} and set(drawn["resumed"].get_xdata()) == {2}
    low, high = axes.get_ylim()
    assert low < 1.4 and high > 2.5
    words = [text.get_text() for text in axes.texts]
    assert "unigram entropy 2.50" in words
    assert "1.625\nbest 1.400\nat 1" in words  # the last value, and the best as it was earlier
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"train", "validation", "resumed"}


def test_the_unit_is_that_of_the_objective():
    def of(name, **data):
        return {"objective": {"name": name}, "data": data}

    assert loss_label({}) == loss_label(of("seq2seq")) == "loss (nats per token)"
    assert loss_label(of("classify", labels="field")) == "loss (nats per row)"
    assert loss_label(of("classify", labels="value")) == "loss (squared error per row)"
    assert loss_label(of("extractive_qa"), of("extractive_qa")) == "loss (nats per row)"
    assert loss_label(of("classify"), of("causal_lm")) == "loss"
    figure = loss_curves({"run": records([1.0, 0.5])}, ylabel=loss_label(of("tag")))
    assert figure.axes[0].get_ylabel() == "loss (nats per tag)"


def test_several_runs_are_told_apart():
    runs = {"a": records([2.0, 1.0], [(2, 1.1)]), "b": records([3.0, 2.0], [(2, 2.1)])}
    figure = loss_curves(runs, title="both")
    drawn = lines(figure)
    assert drawn["a"].get_color() != drawn["b"].get_color()
    assert drawn["a"].get_color() == drawn["_a validation"].get_color()
    assert figure.axes[0].get_title(loc="left") == "both"


def test_a_high_start_does_not_flatten_the_rest():
    train = np.concatenate(([50.0, 30.0], np.linspace(3, 1, 400)))
    assert loss_curves({"run": records(train)}).axes[0].get_ylim()[1] < 10


@pytest.mark.parametrize("train", [[], [2.0], [float("nan")] * 3, [2.0, float("nan"), 1.0]])
def test_short_empty_and_broken_runs_are_drawn_too(train, tmp_path):
    loss_curves({"run": records(train, [(1, 2.0)] if train else [])}).savefig(tmp_path / "x.png")


def test_running_mean_keeps_a_line_and_skips_nan():
    line = np.linspace(0, 1, 50)
    np.testing.assert_allclose(running_mean(line, 7)[:-7], line[:-7], atol=1e-12)
    np.testing.assert_allclose(running_mean(np.array([1, np.nan, 3.0, 1.0]), 1), [1, 2, 2, 2])
