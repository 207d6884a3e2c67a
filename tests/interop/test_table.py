"""One rule serves both ways: the published layout is a view of ours; wrong tables are loud."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer.interop import table
from jaxformer.interop.table import Rule, part

N, H, D = 3, 5, 7


@pytest.mark.parametrize(
    "transform,shape,published",
    [
        (table.PLAIN, (4, D), lambda x: x),
        (table.VECTOR, (N, H), lambda x: x.reshape(N * H)),
        (table.VECTOR, (D,), lambda x: x),
        (table.LINEAR, (D, 4), lambda x: x.T),
        (table.LINEAR, (D, N, H), lambda x: x.reshape(D, N * H).T),
        (table.LINEAR_FROM_HEADS, (N, H, D), lambda x: x.reshape(N * H, D).T),
        (table.CONV1D, (D, N, H), lambda x: x.reshape(D, N * H)),
        (table.CONV1D_FROM_HEADS, (N, H, D), lambda x: x.reshape(N * H, D)),
    ],
)
def test_a_transform_is_a_view_both_ways(transform, shape, published):
    ours = np.random.default_rng(0).standard_normal(shape)
    view = transform.publish(ours)
    np.testing.assert_array_equal(view, published(ours))
    assert view.shape == transform.shape(shape)
    view[...] = 0  # reading assigns
    assert not ours.any()


def test_a_window_of_heads_is_a_window_of_the_published():
    whole = (slice(None), slice(None), slice(None))
    found = table.LINEAR.windows((D, N, H), (slice(2, 4), slice(1, 3), slice(None)))
    assert found == [(whole, (1 * H, 2))]


SHAPES = {"layers/a": (2, 4, 6), "b": (3,)}
GOOD = (Rule("h.{layer}.a", "layers/a"), Rule("b", "b"))


def test_rules_are_written_out_by_layer():
    found = table.expand(GOOD, SHAPES).published
    assert list(found) == ["h.0.a", "h.1.a", "b"]
    assert found["h.1.a"].shape == (4, 6) and found["h.1.a"].slots[0].index == (1,)


def test_experts_have_an_axis_of_their_own():
    rules = (Rule("h.{layer}.e.{expert}.w", "layers/w", table.LINEAR),)
    found = table.expand(rules, {"layers/w": (2, 3, 4, 5)}).published
    assert len(found) == 6 and found["h.1.e.2.w"].shape == (5, 4)


def test_parts_may_differ_in_size():
    rules = (
        Rule("qkv", "q", part(table.LINEAR, 0, 3)),
        Rule("qkv", "k", part(table.LINEAR, 1, 3)),
        Rule("qkv", "v", part(table.LINEAR, 2, 3)),
    )
    tensor = table.expand(rules, {"q": (D, 4, H), "k": (D, 2, H), "v": (D, 2, H)}).published["qkv"]
    assert tensor.shape == (8 * H, D)
    assert [slot.begin for slot in tensor.slots] == [(0, 0), (4 * H, 0), (6 * H, 0)]


@pytest.mark.parametrize(
    "rules,words",
    [
        (GOOD[:1], "no rule for parameter b"),
        ((*GOOD, Rule("c", "c")), "names 'c', which is not there"),
        ((*GOOD, Rule("b2", "b")), "is both 'b' and 'b2'"),
        ((Rule("a", "layers/a"), GOOD[1]), "needs {layer}"),
        ((*GOOD[:1], Rule("b", "b", part(table.PLAIN, 0, 2))), "1 of its 2 parts"),
        ((Rule("h.{layer}.a", "layers/a", layers=(1,)), GOOD[1]), r"no rule for .*layers/a\[0\]"),
    ],
)
def test_a_wrong_table_is_loud(rules, words):
    with pytest.raises(ValueError, match=words):
        table.expand(rules, SHAPES)


def test_a_layer_that_no_file_has_is_filled():
    rules = (Rule("h.{layer}.a", "layers/a", layers=(1,), fill=1.0), GOOD[1])
    found = table.expand(rules, SHAPES)
    assert found.fills == {("layers/a", (0,)): 1.0} and list(found.published) == ["h.1.a", "b"]
