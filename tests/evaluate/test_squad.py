"""The rules of SQuAD: scores by hand, decoding against all spans of all windows one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.errors import UserError
from jaxformer.evaluate import squad
from jaxformer.evaluate.squad import Answer, Candidate, Window, decode


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's, a-top!", "cats atop"),
        ("an A. the", ""),
        ("Theatre of a theme", "theatre of theme"),
        ("“Quoted” – text", "“quoted” – text"),  # only ASCII's marks go
        ("3.5\t%\n of", "35 of"),
    ],
)
def test_normalise(text, normal):
    assert squad.normalise(text) == normal


def test_exact_match_and_f1_by_hand():
    assert squad.exact_match("the Broncos!", "Broncos") == 1.0
    assert squad.exact_match("Denver Broncos", "Broncos") == 0.0
    assert squad.token_f1("Denver Broncos", "the Broncos") == pytest.approx(2 / 3)
    assert squad.token_f1("b b c", "b c c d") == pytest.approx(4 / 7)  # bags, not sets
    assert squad.token_f1("x", "y") == 0.0
    assert (squad.token_f1("", ""), squad.token_f1("", "x"), squad.token_f1("x", "")) == (1, 0, 0)
    # Articles alone on both sides: the script of version 1.1 finds no common word.
    assert (squad.token_f1("the", "a", 2), squad.token_f1("the", "a", 1)) == (1.0, 0.0)


def test_scores_of_both_versions():
    predictions = {"q1": "the cat sat", "q2": "", "q3": "dog", "q4": ""}
    truths = {"q1": ["a dog", "cat"], "q2": [], "q3": [], "q4": ["x"]}
    found = squad.score(predictions, truths, version=2)
    third = pytest.approx(100 / 3)  # "cat sat" for "cat", and nothing for "x"
    assert found == {
        "exact": 25.0, "f1": pytest.approx(125 / 3), "total": 4.0, "has_answer_exact": 0.0,
        "has_answer_f1": third, "no_answer_exact": 50.0, "no_answer_f1": 50.0,
    }  # fmt: skip
    one = squad.score(predictions, {"q1": ["cat", "the cat sat."]})
    assert one == {"exact": 100.0, "f1": 100.0, "total": 1.0}
    # Version 2 leaves out answers that are articles and marks only.
    assert squad.score({"q": ""}, {"q": ["the"]}, version=2)["exact"] == 100.0
    assert squad.score({"q": ""}, {"q": ["the", "x"]}, version=2)["exact"] == 0.0


def test_mistakes_are_told_in_one_line():
    for arguments, words in [
        (({"a": "x"}, {"a": ["x"], "b": ["y"]}), "1 of 2 questions have no prediction.*'b'"),
        (({"a": "x"}, {"a": []}), "question 'a' has no answer"),
        (({}, {}), "no questions"),
    ]:
        with pytest.raises(UserError, match=words):
            squad.score(*arguments)
    with pytest.raises(UserError, match="version 3"):
        squad.score({"a": ""}, {"a": ["x"]}, version=3)
    with pytest.raises(UserError, match="leaves 0 tokens"):
        squad.spans(10, 0, 1)
    with pytest.raises(UserError, match="stride is 5"):
        squad.spans(10, 4, 5)


def test_spans_by_hand():
    assert squad.spans(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert squad.spans(9, 4, 3) == [(0, 4), (3, 7), (6, 9)]
    assert squad.spans(4, 4, 2) == [(0, 4)]
    assert squad.spans(0, 4, 2) == [(0, 0)]


sizes = st.integers(1, 60).flatmap(
    lambda room: st.tuples(st.integers(0, 150), st.just(room), st.integers(1, room))
)


@settings(deadline=None)
@given(sizes)
def test_spans_cover_everything_and_each_token_has_its_best_window(size):
    num_tokens, room, stride = size
    spans = squad.spans(num_tokens, room, stride)
    assert {t for begin, end in spans for t in range(begin, end)} == set(range(num_tokens))
    assert all(end - begin <= room for begin, end in spans)
    assert all(end < num_tokens for _, end in spans[:-1])  # no window more than it takes
    for token, window in enumerate(squad.max_context(spans, num_tokens)):
        scores = [
            min(token - begin, end - 1 - token) + 0.01 * (end - begin)
            if begin <= token < end
            else -1
            for begin, end in spans
        ]
        assert window == scores.index(max(scores))


CONTEXT = "the quick brown fox jumps over a lazy dog near the old river bank"
WORDS = CONTEXT.split()
OFFSETS = [
    (sum(len(w) + 1 for w in WORDS[:i]), sum(len(w) + 1 for w in WORDS[:i]) + len(word))
    for i, word in enumerate(WORDS)
]


def random_windows(rng, room=6, stride=3):
    return [
        Window(begin, *rng.normal(size=(2, end - begin)), float(rng.normal()))
        for begin, end in squad.spans(len(WORDS), room, stride)
    ]


def all_answers(windows, max_answer_length):
    """Each text's best score, by loops over all spans."""
    spans = [(w.first, w.first + len(w.start_logits_C)) for w in windows]
    window_N = squad.max_context(spans, len(WORDS))
    best = {}
    for index, window in enumerate(windows):
        for i, start_logit in enumerate(window.start_logits_C):
            for j, end_logit in enumerate(window.end_logits_C):
                first, last = window.first + i, window.first + j
                if i <= j < i + max_answer_length and window_N[first] == index:
                    text = CONTEXT[OFFSETS[first][0] : OFFSETS[last][1]]
                    best[text] = max(best.get(text, -np.inf), start_logit + end_logit)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_decoding_finds_the_best_of_all_spans(seed):
    windows = random_windows(np.random.default_rng(seed))
    best = all_answers(windows, 4)
    want = sorted(best, key=lambda text: -best[text])
    answer = decode(CONTEXT, OFFSETS, windows, n_best=7, max_answer_length=4)
    assert answer.text == want[0]
    assert [c.text for c in answer.n_best] == want[:7]
    np.testing.assert_allclose([c.score for c in answer.n_best], [best[t] for t in want[:7]])
    weights = np.exp([best[text] for text in want[:7]])
    np.testing.assert_allclose([c.probability for c in answer.n_best], weights / weights.sum())
    assert all(CONTEXT[c.start :].startswith(c.text) for c in answer.n_best)
    everything = decode(CONTEXT, OFFSETS, windows, n_best=1000, max_answer_length=4)
    assert {c.text for c in everything.n_best} == set(best)
    assert max(len(c.text.split()) for c in everything.n_best) == 4


def test_no_answer_by_the_lowest_null_score_and_a_threshold():
    windows = random_windows(np.random.default_rng(0))
    best = max(all_answers(windows, 30).values())
    windows = [w._replace(null_score=best + 2.0 + i) for i, w in enumerate(windows)]
    assert decode(CONTEXT, OFFSETS, windows).text != ""
    none = decode(CONTEXT, OFFSETS, windows, no_answer=True)
    assert none.text == "" and none.null_odds == pytest.approx(2.0)
    assert none.n_best[0] == Candidate("", -1, pytest.approx(best + 2), none.n_best[0].probability)
    assert sum(c.probability for c in none.n_best) == pytest.approx(1.0)
    some = decode(CONTEXT, OFFSETS, windows, no_answer=True, threshold=2.1)
    assert some.text == none.n_best[1].text
    assert decode("", [], [Window(0, np.zeros(0), np.zeros(0))], no_answer=True).text == ""
    assert decode("", [], [Window(0, np.zeros(0), np.zeros(0))]) == Answer("", np.inf, [])


def test_a_token_counts_in_the_window_where_it_sees_most():
    """In the first window "c" is the last token: its high logit there is a guess at the rim."""
    offsets = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    rim = Window(0, np.array([0.0, 1.0, 9.0]), np.array([0.0, 1.0, 9.0]))
    other = Window(1, np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 0.0, 0.0, 2.0]))
    answer = decode("a b c d e", offsets, [rim, other], max_answer_length=1)
    assert (answer.text, answer.n_best[0].score) == ("e", 4.0)


def test_answers_are_cut_by_characters_and_blanks_fall_off():
    context = "Zürich  (CH)\n is ￥5"
    offsets = [(0, 6), (6, 9), (9, 11), (11, 12), (12, 17), (17, 18), (18, 19), (18, 19)]
    start, end = np.full(8, -9.0), np.full(8, -9.0)
    start[1] = end[2] = 3.0
    answer = decode(context, offsets, [Window(0, start, end)])
    assert answer.text == "(CH" and context[answer.n_best[0].start :].startswith("(CH")
    start[5] = end[7] = 5.0
    assert decode(context, offsets, [Window(0, start, end)]).text == "￥5"


def test_windows_of_rows_are_put_together_again():
    """Several tokens stand on one character, as the bytes of an emoji do."""
    offsets = [(0, 1), (1, 2), (3, 4), (3, 4), (3, 4), (3, 4), (4, 6), (7, 8), (8, 9)]
    rng = np.random.default_rng(0)
    for room, stride in [(r, s) for r in range(1, 10) for s in range(1, r + 1)]:
        rows, want = [], []
        for begin, end in squad.spans(len(offsets), room, stride):
            spans = np.full((14, 2), -1)
            part = slice(3, 3 + end - begin)
            spans[part] = offsets[begin:end]
            start, stop = rng.normal(size=(2, 14))
            rows.append((begin, spans, start, stop))
            want.append((begin, start[part], stop[part], start[0] + stop[0]))
        found, windows = squad.join_windows(rows)
        assert found.tolist() == [list(offset) for offset in offsets]
        for window, fields in zip(windows, want, strict=True):
            for value, field in zip(window, fields, strict=True):
                np.testing.assert_array_equal(value, field)


def test_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(30):
        answers, truths = {}, {}
        for i in range(9):
            text = str(rng.choice(["cat", "dog", "cat sat"]))
            odds = float(rng.integers(-3, 4))  # with ties
            candidates = [Candidate("", -1, odds, 0.5), Candidate(text, 0, 0.0, 0.5)]
            answers[str(i)] = Answer("", odds, candidates)
            truths[str(i)] = [["cat"], ["dog"], [], []][rng.integers(4)]
        threshold, best = squad.best_threshold(answers, truths)

        def at(threshold, answers=answers, truths=truths):
            texts = {
                name: "" if answer.null_odds > threshold else answer.n_best[1].text
                for name, answer in answers.items()
            }
            return squad.score(texts, truths, version=2)["f1"]

        assert best == pytest.approx(at(threshold))
        assert best == pytest.approx(max(at(t) for t in (-np.inf, *range(-4, 5))))
