"""Templates, scores of choices, calibration, generation with stops, votes and sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import prompting
from jaxformer.evaluate.prompting import few_shot, generate_texts, majority_vote, score_choices
from jaxformer.evaluate.sweep import Result, choice_accuracy, sweep, table
from jaxformer.generate import Config

EXAMPLES = [{"q": str(i), "a": str(i % 3)} for i in range(8)]


def ask(example):
    return f"Q: {example['q']}\nA:"


def solve(example):
    return f" {example['a']}"


def test_few_shot_prompts():
    two = few_shot(ask, solve, EXAMPLES[:6], 2, seed=3)
    prompt = two(EXAMPLES[7])
    parts = prompt.split("\n\n")
    assert len(parts) == 3 and parts[2] == "Q: 7\nA:"
    assert all(part in {ask(e) + solve(e) for e in EXAMPLES[:6]} for part in parts[:2])
    assert two(EXAMPLES[6]).split("\n\n")[:2] == parts[:2]  # the same shots for all
    assert few_shot(ask, solve, EXAMPLES[:6], 2, seed=4)(EXAMPLES[7]) != prompt
    assert few_shot(ask, solve, EXAMPLES, 0)(EXAMPLES[1]) == ask(EXAMPLES[1])


def test_an_example_never_gives_its_own_answer_away():
    for example in EXAMPLES:
        prompt = few_shot(ask, solve, EXAMPLES, 7)(example)
        assert prompt.count("Q:") == 8 and prompt.count(f"Q: {example['q']}\n") == 1
    with pytest.raises(UserError, match="besides the example itself"):
        few_shot(ask, solve, EXAMPLES, 8)(EXAMPLES[0])
    with pytest.raises(UserError, match="9 shots, but there are 8"):
        few_shot(ask, solve, EXAMPLES, 9)


CHOICES = [["yes", "no"], [" a", " longer one", "ü"], ["yes", "no"]]
PROMPTS = ["Is it so? ", "It is", ""]


def by_hand(speaker, prompt, choice):
    encode = speaker.tokenizer.encode
    kept = prompt.rstrip()
    context = encode(kept) if kept else [261]
    return speaker.by_hand(context, encode(prompt[len(kept) :] + choice))[0]


def test_choices_by_hand(speaker):
    scores = {
        how: score_choices(*speaker.all, PROMPTS, CHOICES, normalise=how, unconditional="A:",
                           batch_size=3)
        for how in prompting.NORMALISE
    }  # fmt: skip
    for row, (prompt, choices) in enumerate(zip(PROMPTS, CHOICES)):
        want = np.array([by_hand(speaker, prompt, choice) for choice in choices])
        prior = np.array([by_hand(speaker, "A:", choice) for choice in choices])
        sizes = np.array([len(choice.encode()) for choice in choices])
        tokens = sizes + (len(prompt) - len(prompt.rstrip()))  # the blank went to the choice
        np.testing.assert_allclose(scores["none"][row], want, rtol=1e-5)
        np.testing.assert_allclose(scores["tokens"][row], want / tokens, rtol=1e-5)
        np.testing.assert_allclose(scores["bytes"][row], want / sizes, rtol=1e-5)
        np.testing.assert_allclose(scores["unconditional"][row], want - prior, rtol=1e-5, atol=1e-4)


def test_mistakes_in_choices_are_told(speaker):
    for choices, words in [
        ([["a"]], "2 prompts, but 1 lists of choices"),
        ([["a"], []], r"prompt 1 has the choices \[\]"),
        ([["a"], ["b", ""]], "prompt 1 has the choices"),
        (["ab", "cd"], "prompt 0 has the choices 'ab'"),
    ]:
        with pytest.raises(UserError, match=words):
            score_choices(*speaker.all, ["p", "q"], choices)
    with pytest.raises(UserError, match="did you mean 'tokens'"):
        score_choices(*speaker.all, [], [], normalise="token")


def test_calibration_takes_the_bias_out():
    """A prompt that gives "positive" 0.8 whatever the input, with one that says a little more."""
    content_free = np.log([[0.8, 0.2], [0.8, 0.2]]) - 5.0  # likelihoods need not sum to 1
    scores = np.log([[0.8, 0.2], [0.7, 0.3], [0.9, 0.1]]) - 9.0
    probabilities = np.exp(prompting.calibrate(scores, content_free))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities[0], [0.5, 0.5])
    np.testing.assert_allclose(probabilities[1], [0.875 / 2.375, 1.5 / 2.375])
    assert probabilities.argmax(axis=1).tolist()[1:] == [1, 0]
    # Averaged as probabilities: log-probabilities would give another mean.
    mixed = np.exp(prompting.calibrate(scores, np.log([[0.9, 0.1], [0.5, 0.5]])))
    np.testing.assert_allclose(mixed[0], np.array([0.8 / 0.7, 0.2 / 0.3]) / (0.8 / 0.7 + 0.2 / 0.3))


GREEDY = Config(max_new_tokens=12, temperature=0.0)
WARM = Config(max_new_tokens=8, temperature=1.0, seed=5)


def test_greedy_texts_depend_on_their_prompt_alone(speaker):
    prompts = ["Hello", "", "A much longer prompt, in fact", "x", "y"]
    together = generate_texts(*speaker.all, prompts, GREEDY, batch_size=2)
    alone = [generate_texts(*speaker.all, [prompt], GREEDY)[0] for prompt in prompts]
    assert together == alone and len({text for [text] in together}) > 1


def test_a_stop_cuts_the_text_even_within_a_token(speaker):
    class Pairs(type(speaker.tokenizer)):
        """Decodes each token to two characters, so that a stop falls into a token's middle."""

        def decode_plain(self, ids):
            return "".join(f"{chr(97 + i % 26)}{chr(65 + i % 26)}" for i in ids)

    tokenizer = Pairs()
    [[whole]] = generate_texts(*speaker.all[:2], tokenizer, ["Hello"], GREEDY)
    stop = whole[5:7]
    config = Config(max_new_tokens=12, temperature=0.0, stop=(stop,))
    [[text]] = generate_texts(*speaker.all[:2], tokenizer, ["Hello"], config)
    assert text == whole[: whole.index(stop)] and len(text) % 2


def test_samples_do_not_depend_on_the_size_of_batches(speaker, monkeypatch):
    monkeypatch.setattr(prompting, "SAMPLES", 2)
    prompts = ["Hello", "Good", "Hello"]
    few = generate_texts(*speaker.all, prompts, WARM, samples=4)
    assert [len(texts) for texts in few] == [4, 4, 4]
    assert len({text for texts in few for text in texts}) > 6
    assert generate_texts(*speaker.all, prompts, WARM, samples=4, batch_size=3) == few
    fewer = generate_texts(*speaker.all, prompts, WARM, samples=2)
    assert fewer == [texts[:2] for texts in few]
    # The prompt's place draws, not the prompts before it.
    assert generate_texts(*speaker.all, ["Else", *prompts[1:]], WARM, samples=4)[1:] == few[1:]


def test_too_long_prompts(speaker):
    long = "0123456789" * 6
    with pytest.raises(UserError, match="exceed model.max_length=48"):
        generate_texts(*speaker.all, [long], GREEDY)
    cut = generate_texts(*speaker.all, [long], GREEDY, truncate=True)
    assert cut == generate_texts(*speaker.all, [long[-36:]], GREEDY)
    with_bos = generate_texts(*speaker.all, [long], GREEDY, truncate=True, add_bos=True)
    assert with_bos == generate_texts(*speaker.all, [long[-35:]], GREEDY, add_bos=True)
    with pytest.raises(UserError, match="no room for a prompt"):
        generate_texts(*speaker.all, ["a"], Config(max_new_tokens=48), truncate=True)
    with pytest.raises(UserError, match="3 samples at temperature 0.0 with 1 beams"):
        generate_texts(*speaker.all, ["a"], GREEDY, samples=3)


def test_votes():
    assert majority_vote(["7", None, "8", "8"]) == ("8", 0.5, ["7", None, "8", "8"])
    assert majority_vote(["b", "a", "a", "b"]).answer == "b"  # the first among equals
    assert majority_vote([None, None]) == (None, 0.0, [None, None])
    assert majority_vote([0, 0, None]).answer == 0


def test_self_consistency_votes_on_what_is_written(speaker):
    prompts = ["Hello", "Good"]
    texts = generate_texts(*speaker.all, prompts, WARM, samples=5)
    votes = prompting.self_consistency(
        *speaker.all, prompts, lambda text: len(text) % 2 or None, WARM, samples=5
    )
    for vote, written in zip(votes, texts, strict=True):
        assert vote == majority_vote([len(text) % 2 or None for text in written])


def test_a_sweep_says_a_table_best_first(speaker):
    said = []
    templates = {"plain": ask, "bare": lambda example: example["q"]}
    asked = []

    def scorer(prompts, examples):
        asked.append(prompts)
        return 0.25 + len(prompts[0]) / 1000

    results = sweep(
        templates, EXAMPLES[:3], scorer, answer=solve, demonstrations=EXAMPLES[3:],
        shots=(0, 2), say=said.append,
    )  # fmt: skip
    assert [(r.template, r.shots) for r in results] == [
        ("plain", 2), ("bare", 2), ("plain", 0), ("bare", 0),
    ]  # fmt: skip
    assert asked[0] == [ask(example) for example in EXAMPLES[:3]]
    assert said == [table(results)]
    lines = said[0].splitlines()
    assert lines[0].split() == ["template", "shots", "score", "examples"]
    assert lines[1].split() == ["plain", "2", f"{results[0].score:.4f}", "3"]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(UserError, match="needs `answer`"):
        sweep(templates, EXAMPLES, scorer, shots=(1,), say=said.append)
    with pytest.raises(UserError, match="at least"):
        sweep({}, EXAMPLES, scorer)
    assert table([]) == "template  shots   score  examples"
    assert sweep({"t": ask}, EXAMPLES, lambda p, e: 1, say=said.append) == [Result("t", 0, 1.0, 8)]


def test_choice_accuracy(speaker):
    prompts = [ask(example) for example in EXAMPLES]
    scores = score_choices(*speaker.all, prompts, [[" 0", " 1", " 2"]] * 8, normalise="bytes")
    right = np.mean([np.argmax(s) == int(e["a"]) for s, e in zip(scores, EXAMPLES)])
    scorer = choice_accuracy(
        *speaker.all, lambda e: [" 0", " 1", " 2"], lambda e: int(e["a"]), normalise="bytes"
    )
    assert scorer(prompts, EXAMPLES) == right
