"""Names scored whole, against what conlleval counts."""

from __future__ import annotations

import itertools

import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import entities


@pytest.mark.parametrize(("tags", "names"), [
    ("O O", set()),
    ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
    ("I-PER I-PER B-PER I-LOC", {(0, 2, "PER"), (2, 3, "PER"), (3, 4, "LOC")}),  # IOB1
    ("B-PER B-PER I-LOC I-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 4, "LOC")}),
    ("S-PER S-PER B-LOC I-LOC E-LOC E-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC"),
                                             (5, 6, "LOC")}),
    ("B-DATE-TIME I-DATE-TIME", {(0, 2, "DATE-TIME")}),
])  # fmt: skip
def test_names_of_a_sentence(tags, names):
    assert entities.spans(tags.split()) == names


def test_iob2_is_what_it_says():
    """Written out from any names, tags give these names back; in IOB2 and in IOBES."""
    kinds = ("", "PER", "LOC")
    for row in itertools.product(kinds, (1, 2), kinds, (1, 2), kinds):
        names, plain, ends, place = set(), [], [], 0
        for kind, length in zip(row[::2], (*row[1::2], 1)):
            if kind:
                names.add((place, place + length, kind))
                plain += [f"B-{kind}", f"I-{kind}"][:length]
                ends += [f"S-{kind}"] if length == 1 else [f"B-{kind}", f"E-{kind}"]
            else:
                plain += ["O"] * length
                ends += ["O"] * length
            place += length
        assert entities.spans(plain) == entities.spans(ends) == names


def test_score():
    """Two names of which one is found, one of them with a wrong end, and one that is not there."""
    right = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    given = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entities.score(given, right) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    given[1] = ["B-PER", "I-PER", "B-LOC"]
    found = entities.score(given, right)
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4})
    assert entities.score(right, right)["f1"] == 1.0
    assert entities.score([["O"]], [["O"]])["f1"] == 0.0
    with pytest.raises(UserError, match="sentence 0 has 1 tags given and 2 right ones"):
        entities.score([["O"]], [["O", "O"]])


def test_parts_of_speech_are_no_names():
    assert entities.are_spans(["O", "B-PER", "I-PER"])
    assert not entities.are_spans(["NOUN", "VERB"])
    assert not entities.are_spans(["O"])
    assert not entities.are_spans(["O", "B-"])
