"""Asking a language model by prompts: templates, scores of choices, generation, votes.

A template is a plain function from an example (a dict) to a prompt. n prompts, K choices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer import generate
from jaxformer.errors import UserError, one_of
from jaxformer.evaluate.batching import batches_by_length
from jaxformer.evaluate.likelihood import encode_pair, loglikelihoods, prefix_ids

Example = Mapping[str, Any]
Template = Callable[[Example], str]

# Samples of one prompt that are written at once; it decides their keys, so it is no option.
SAMPLES = 16
NORMALISE = ("none", "tokens", "bytes", "unconditional")


def few_shot(
    template: Template,
    answer: Template,
    demonstrations: Sequence[Example],
    shots: int,
    *,
    separator: str = "\n\n",
    seed: int = 0,
) -> Template:
    """Returns a template that puts solved examples before the one that is asked (Brown 2020).

    All prompts have the same shots in the same order, drawn by `seed`; only an example that is
    among them itself has the next one drawn instead.

    Args:
      template: the prompt of one example, up to where its answer begins.
      answer: an example's right answer, with the blank before it if there is to be one.
      demonstrations: examples to draw from.
      shots: how many; 0 gives the template as it is.
      separator: between examples.
      seed: of the draw.

    Raises:
      UserError: fewer demonstrations than shots; when a prompt is made, also if one of them is the
        example itself.
    """
    if shots > len(demonstrations):
        raise UserError(
            f"{shots} shots, but there are {len(demonstrations)} demonstrations to draw from"
        )
    drawn = random.Random(seed).sample(range(len(demonstrations)), len(demonstrations))

    def prompt(example: Example) -> str:
        others = (demonstrations[i] for i in drawn if demonstrations[i] != example)
        chosen = [shot for _, shot in zip(range(shots), others)]
        if len(chosen) < shots:
            raise UserError(f"{shots} shots need {shots} demonstrations besides the example itself")
        solved = [template(shot) + answer(shot) for shot in chosen]
        return separator.join([*solved, template(example)])

    return prompt


def score_choices(
    model: Any,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    normalise: str = "none",
    unconditional: str = "",
    batch_size: int = 32,
    add_bos: bool | None = None,
) -> list[np.ndarray]:
    """Returns the scores [K] float64 of each prompt's choices, by their log-likelihood after it.

    Args:
      model, params: a causal language model.
      tokenizer: its tokenizer.
      prompts: n texts.
      choices: of each prompt, K texts (K may differ) as they go on from it, with the blank between.
      normalise: "none" (log p(choice | prompt): shorter ones are favoured), "tokens" (per token),
        "bytes" (per byte: does not depend on the vocabulary), "unconditional" (less
        log p(choice | `unconditional`): pointwise mutual information, Holtzman 2021; Brown 2020).
      unconditional: the prompt that says nothing of the question, such as "Answer:"; "" is BOS.
      batch_size: most rows that run at once.
      add_bos: whether texts begin with BOS; None: as the tokenizer's file says.

    Raises:
      UserError: no choice, an empty one, an unknown `normalise`, or what `loglikelihoods` raises.
    """
    one_of(normalise, NORMALISE, "normalise")
    _same_length(prompts, choices, "lists of choices")
    for index, options in enumerate(choices):
        if isinstance(options, str) or not options or not all(options):
            raise UserError(f"prompt {index} has the choices {options!r}; give texts, none empty")
    flat = [(prompt, text) for prompt, texts in zip(prompts, choices) for text in texts]
    contexts = [("", text) for _, text in flat]
    if normalise == "unconditional":
        contexts = [(unconditional, text) for _, text in flat]
    pairs = [encode_pair(tokenizer, *pair, add_bos=add_bos) for pair in flat]
    sums = np.array([total for total, _ in loglikelihoods(model, params, pairs, batch_size)])
    if normalise == "tokens":
        sums = sums / [len(ids) for _, ids in pairs]
    elif normalise == "bytes":
        sums = sums / [len(text.encode()) for _, text in flat]
    elif normalise == "unconditional":
        distinct = list(dict.fromkeys(contexts))
        bare = [encode_pair(tokenizer, *pair, add_bos=add_bos) for pair in distinct]
        prior = {
            pair: total
            for pair, (total, _) in zip(distinct, loglikelihoods(model, params, bare, batch_size))
        }
        sums = sums - [prior[pair] for pair in contexts]
    return np.split(sums, np.cumsum([len(texts) for texts in choices])[:-1])


def calibrate(scores_nK: np.ndarray, content_free_mK: np.ndarray) -> np.ndarray:
    """Returns log-probabilities of choices [n, K], freed of the prompt's own bias (Zhao 2021).

    Equation 1 with W = diag(p_cf)^-1 and b = 0, its result made to sum to 1, which keeps the order.

    Args:
      scores_nK: log-likelihoods of the same K choices after each prompt.
      content_free_mK: those after the same prompt with inputs that say nothing ("N/A", "",
        "[MASK]"); their probabilities are averaged.
    """
    p_cf_K = np.exp(_log_softmax(np.asarray(content_free_mK, float))).mean(axis=0)
    return _log_softmax(_log_softmax(np.asarray(scores_nK, float)) - np.log(p_cf_K))


def generate_texts(
    model: Any,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    config: generate.Config,
    *,
    samples: int = 1,
    batch_size: int = 16,
    add_bos: bool | None = None,
    truncate: bool = False,
) -> list[list[str]]:
    """Returns `samples` continuations of each prompt, cut at EOS and at `config.stop`.

    A continuation depends on its prompt, `config.seed`, and, when drawn, on the prompt's place
    among the prompts and its number among the samples; never on `batch_size`.

    Args:
      model, params: a model that writes.
      tokenizer: its tokenizer.
      prompts: n texts; an empty one begins with BOS or EOS.
      config: how to draw; its `prompts` are not read.
      samples: continuations of each prompt; more than 1 needs a temperature above 0.
      batch_size: most rows that are written at once, unless they are drawn.
      add_bos: whether prompts begin with BOS; None: as the tokenizer's file says.
      truncate: whether a prompt that is too long loses its beginning; without it, it raises.

    Raises:
      UserError: see `generate.generate`; or several samples that would all be the same.
    """
    if samples > 1 and (config.temperature == 0 or config.num_beams > 1):
        raise UserError(
            f"{samples} samples at temperature {config.temperature} with {config.num_beams} beams "
            "are all the same; set the temperature to 0.7, say, and beams to 1"
        )
    if getattr(model, "encode", None) is not None:
        raise UserError("prompts are continued by a decoder; this model is sequence to sequence")
    most = model.config.max_length - config.max_new_tokens
    start = prefix_ids(tokenizer, add_bos)
    rows = [start + tokenizer.encode(prompt) for prompt in prompts]
    if truncate:
        if most <= len(start):
            raise UserError(
                f"max_new_tokens={config.max_new_tokens} leaves no room for a prompt in "
                f"max_length={model.config.max_length}; lower it"
            )
        rows = [start + row[max(len(start), len(row) - most + len(start)) :] for row in rows]

    in_text = any(isinstance(stop, str) for stop in config.stop)

    def write(batch: list[list[int]], key: jax.Array) -> list[str]:
        texts = [""] * len(batch)

        def stream(row: int, new: str) -> None:
            texts[row] += new

        written = generate.generate(
            model, params, batch, config, key=key, decode=tokenizer.decode,
            # A stop may lie within a token, so its text is taken as it comes, not from the ids.
            stream=stream if in_text else None,
            eos_ids=[tokenizer.eos_id] if tokenizer.eos_id >= 0 else [],
            bos_id=tokenizer.bos_id, num_ids=tokenizer.vocab_size,
        )  # fmt: skip
        return texts if in_text else [tokenizer.decode(ids) for ids in written]

    key = jax.random.key(config.seed)
    if config.temperature > 0 and config.num_beams == 1:
        # Rows draw by their place in the batch: a prompt and its samples are a batch of their own.
        texts: list[list[str]] = [[] for _ in rows]
        for index, row in enumerate(rows):
            for first in range(0, samples, SAMPLES):
                batch_key = jax.random.fold_in(jax.random.fold_in(key, index), first)
                texts[index] += write([row] * min(SAMPLES, samples - first), batch_key)
        return texts
    found: dict[int, str] = {}
    for _, chosen in batches_by_length([len(r) for r in rows], batch_size, model.config.max_length):
        found |= zip(chosen, write([rows[i] for i in chosen], key), strict=True)
    return [[found[index]] for index in range(len(rows))]


class Vote(NamedTuple):
    """The winner (None: nobody gave an answer), its share of all answers, and these."""

    answer: Any
    share: float
    answers: list[Any]


def majority_vote(answers: Sequence[Hashable | None]) -> Vote:
    """Returns the most frequent answer; None is none, and among equals the first counts."""
    counts: dict[Hashable, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    if not counts:
        return Vote(None, 0.0, list(answers))
    winner = max(counts, key=lambda answer: counts[answer])
    return Vote(winner, counts[winner] / len(answers), list(answers))


def self_consistency(
    model: Any,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    extract: Callable[[str], Hashable | None],
    config: generate.Config,
    *,
    samples: int = 10,
    **options: Any,
) -> list[Vote]:
    """Returns, for each prompt, the vote of several sampled continuations (Wang 2022).

    Args:
      extract: a continuation -> its answer, or None if it holds none.
      others: see `generate_texts`.
    """
    written = generate_texts(model, params, tokenizer, prompts, config, samples=samples, **options)
    return [majority_vote([extract(text) for text in texts]) for texts in written]


def _log_softmax(scores_nK: np.ndarray) -> np.ndarray:
    scores_nK = scores_nK - scores_nK.max(axis=-1, keepdims=True)
    return scores_nK - np.log(np.exp(scores_nK).sum(axis=-1, keepdims=True))


def _same_length(prompts: Sequence, others: Sequence, what: str) -> None:
    if len(prompts) != len(others):
        raise UserError(f"{len(prompts)} prompts, but {len(others)} {what}; give one for each")
