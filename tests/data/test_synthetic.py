"""Made texts: their classes by other means, their bounds, and that no text is in both splits."""

from __future__ import annotations

import collections
import re
import statistics

import pytest

from jaxformer import data
from jaxformer.data import sources, synthetic
from jaxformer.data.synthetic import needle
from jaxformer.errors import UserError

NAMES = ("listops:400:200", "needle:400:200")


def evaluated(text: str) -> int:
    """The value of a ListOps text, by Python's own parser."""
    functions = {
        "A": lambda *x: max(x),
        "I": lambda *x: min(x),
        "D": lambda *x: int(statistics.median(x)),
        "S": lambda *x: sum(x) % 10,
    }
    source = re.sub(r"([AIDS\d])", lambda m: m[1] + ("," if m[1].isdigit() else "("), text)
    return eval(source.replace("]", "),")[:-1], functions)


def depth_and_arguments(text: str) -> tuple[int, int, int]:
    """The greatest depth, and the fewest and most arguments of a list, by a stack."""
    open_lists, deepest, counts = [], 0, []
    for character in text:
        if character == "]":
            counts.append(open_lists.pop())
        elif open_lists:
            open_lists[-1] += 1
        if character in "AIDS":
            open_lists.append(0)
            deepest = max(deepest, len(open_lists))
    assert not open_lists
    return deepest, min(counts), max(counts)


def test_another_evaluator_agrees_on_every_value():
    assert evaluated("A4I73]D158922]S99]]") == 8  # nested, by hand: max(4, 3, 3, 8)
    for text, label in synthetic.parse("listops:300:200").examples():
        assert evaluated(text) == int(label), text


def test_lists_are_as_in_the_paper():
    texts = [text for text, _ in synthetic.parse("listops:300:1000").examples()]
    shapes = [depth_and_arguments(text) for text in texts]
    assert max(s[0] for s in shapes) == 10 and min(s[1] for s in shapes) == 2
    assert max(s[2] for s in shapes) == 10
    assert {c for text in texts for c in text} == set("AIDS0123456789]")


def test_the_needle_is_the_only_digit_and_lies_anywhere():
    places = []
    for text, label in synthetic.parse("needle:300:100").examples():
        question, *body = text
        found = [(i, c) for i, c in enumerate(body) if not "a" <= c <= "z"]
        assert question == "?" and [c for _, c in found] == [label]
        places.append(found[0][0] / (len(body) - 1))
    assert min(places) < 0.02 and max(places) > 0.98 and 0.45 < sum(places) / 300 < 0.55


@pytest.mark.parametrize("task", ["listops", "needle"])
@pytest.mark.parametrize("length", [16, 100, 1001])
def test_no_text_is_longer_and_none_much_shorter(task, length):
    sizes = [len(text) for text, _ in synthetic.parse(f"{task}:200:{length}").examples()]
    least = length // 4 if task == "listops" else 3 * length // 4
    assert least <= min(sizes) and 0.8 * length < max(sizes) <= length


@pytest.mark.parametrize("task", ["listops", "needle"])
def test_example_i_is_a_function_of_seed_and_i(task):
    few, many = (list(synthetic.parse(f"{task}:{n}:64").examples()) for n in (20, 40))
    assert many[:20] == few == list(synthetic.parse(f"{task}:20:64:0").examples())
    other = list(synthetic.parse(f"{task}:20:64:1").examples())
    assert not {text for text, _ in few} & {text for text, _ in other}


@pytest.mark.parametrize("name", NAMES)
def test_no_class_is_rare_and_none_nearly_all(name):
    counts = collections.Counter(label for _, label in synthetic.parse(name).examples())
    assert set(counts) == set("0123456789")
    assert min(counts.values()) > 400 * 0.03 and max(counts.values()) < 400 * 0.25


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_source_whose_splits_share_no_text(name, tmp_path):
    config = data.Config(
        source=name, labels="field", layout="padded", tokenizer="char", seq_len=202, batch_size=8,
        validation_fraction=0.2, cache_dir=str(tmp_path),
    )  # fmt: skip
    dataset = data.load(config, say=lambda line: None)
    assert dataset.info.class_names == tuple("0123456789")
    parts = [dataset.documents(split) for split in ("train", "validation")]
    assert not {d.text for d in parts[0]} & {d.text for d in parts[1]}
    assert 40 < len(parts[1]) < 120 and sum(map(len, parts)) == 400
    batch = dataset.validation.batch(0, 0)
    for tokens, label, row in zip(batch["tokens"], batch["labels"], parts[1], strict=False):
        assert dataset.tokenizer.decode([t for t in tokens.tolist() if t > 5]) == row.text
        assert str(label) == row.label


def test_another_rule_is_another_source(monkeypatch):
    source = sources.find(NAMES[1], data.Config(source=NAMES[1]))
    before = source.stat_key(), source.content_key()
    assert before == (source.stat_key(), source.content_key())
    monkeypatch.setattr(needle, "FILLER", "xyz")
    assert before[0] != source.stat_key() and before[1] != source.content_key()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "listops:4000"}, "such as listops:4000:512"),
        ({"source": "needle:many:512"}, "NAME:COUNT:LENGTH"),
        ({"source": "listops:0:512"}, "needs 1 text or more"),
        ({"source": "needle:10:8"}, "of 16 characters or more"),
        ({"validation_source": "listops:x"}, "data.validation_source='listops:x'"),
        ({"labels": "value"}, "data.labels='field'"),
    ],
)
def test_a_mistake_is_one_line(changes, words, tmp_path):
    given = {"source": "listops:40:64", "labels": "field", "layout": "padded", **changes}
    with pytest.raises(UserError) as error:
        data.load(data.Config(cache_dir=str(tmp_path), **given))
    assert words in str(error.value) and "\n" not in str(error.value)
