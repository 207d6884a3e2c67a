"""A sweep over prompts: several templates with several numbers of shots, as a table.

Which prompt makes a published decoder, in the folder "gpt2", tell good films from bad ones?

    from jaxformer import data, interop
    from jaxformer.evaluate.sweep import choice_accuracy, sweep

    model, params = interop.load_huggingface("gpt2")
    tokenizer = data.load_tokenizer("gpt2")
    train = [
        {"text": "a joy from start to end", "label": 1},
        {"text": "dull and far too long", "label": 0},
    ]
    dev = [
        {"text": "a fine film", "label": 1},
        {"text": "two hours of nothing", "label": 0},
        {"text": "see it twice", "label": 1},
    ]
    words = [" terrible", " great"]
    templates = {
        "plain": lambda row: f"{row['text']}. It was",
        "asked": lambda row: f"Review: {row['text']} The film was",
    }
    scorer = choice_accuracy(
        model, params, tokenizer, lambda row: words, lambda row: row["label"], normalise="tokens"
    )
    results = sweep(
        templates, dev, scorer, answer=lambda row: words[row["label"]], demonstrations=train,
        shots=(0, 2),
    )

It prints a line for each template and number of shots, the best first:

    template  shots   score  examples
    asked         2  0.6667         3
    plain         0  0.3333         3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.evaluate.prompting import Example, Template, few_shot, score_choices

# (prompts, their examples) -> one score of all of them, more is better.
Scorer = Callable[[list[str], list[Example]], float]


def choice_accuracy(
    model: Any,
    params: Any,
    tokenizer: Any,
    choices: Callable[[Example], Sequence[str]],
    label: Callable[[Example], int],
    **options: Any,
) -> Scorer:
    """Returns a scorer for `sweep`: the share of examples whose right choice scores best.

    Args:
      choices: an example -> its choices.
      label: an example -> the index of the right one.
      options: of `score_choices`.
    """

    def accuracy(prompts: list[str], examples: list[Example]) -> float:
        texts = [choices(example) for example in examples]
        scores = score_choices(model, params, tokenizer, prompts, texts, **options)
        right = [int(np.argmax(s)) == label(e) for s, e in zip(scores, examples, strict=True)]
        return float(np.mean(right))

    return accuracy


@dataclasses.dataclass(frozen=True)
class Result:
    """How well one template did with so many shots."""

    template: str
    shots: int
    score: float
    examples: int


def sweep(
    templates: Mapping[str, Template],
    examples: Sequence[Example],
    scorer: Scorer,
    *,
    answer: Template | None = None,
    demonstrations: Sequence[Example] = (),
    shots: Sequence[int] = (0,),
    separator: str = "\n\n",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Tries every template with every number of shots; says a table and returns it, best first.

    Args:
      templates: by name.
      examples: what is asked; choose among prompts on a development set, not on the test set.
      scorer: (prompts, examples) -> score, such as `choice_accuracy` gives.
      answer, demonstrations, separator, seed: see `few_shot`; needed where there are shots.
      shots: numbers of shots.
      say: gets the table.

    Raises:
      UserError: nothing to try, or shots without answers.
    """
    if not templates or not examples or not shots:
        raise UserError("a sweep needs a template, an example and a number of shots at least")
    if any(shots) and answer is None:
        raise UserError("a sweep with shots needs `answer`, which tells an example's right answer")
    results = []
    for name, template in templates.items():
        for number in shots:
            prompt = template
            if number and answer is not None:
                prompt = few_shot(
                    template, answer, demonstrations, number, separator=separator, seed=seed
                )
            asked = list(examples)
            score = scorer([prompt(example) for example in asked], asked)
            results.append(Result(name, number, float(score), len(asked)))
    results.sort(key=lambda result: -result.score)
    say(table(results))
    return results


def table(results: Sequence[Result]) -> str:
    """Returns the results as lines of plain text, in their order."""
    wide = max([len(result.template) for result in results] + [len("template")])
    lines = [f"{'template':<{wide}}  shots   score  examples"]
    lines += [
        f"{r.template:<{wide}}  {r.shots:>5}  {r.score:.4f}  {r.examples:>8}" for r in results
    ]
    return "\n".join(lines)
