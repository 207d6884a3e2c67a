"""What each task is judged by, beside its loss: texts, classes and answers of a validation split.

B batch, T time, S source time.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer import generate
from jaxformer.errors import one_of
from jaxformer.evaluate import entities, metrics, squad
from jaxformer.objectives.extractive_qa import span_logits

TEXT_METRICS = ("bleu", "chrf", "rouge")
TASKS = ("seq2seq", "classify", "tag", "extractive_qa")


def judge(
    objective: str,
    model: Any,
    params: Any,
    dataset: Any,
    settings: generate.Config,
    *,
    text_metrics: Sequence[str] = ("bleu", "chrf"),
    most: int = 0,
    suppress_ids: Sequence[int] = (),
    first_id: int = -1,
) -> tuple[dict[str, float], list[tuple[str, str, str]]]:
    """Runs a trained model over the validation split of its task.

    Args:
      objective: the name of what it was trained for; see TASKS.
      model, params: as trained.
      dataset: a data.Dataset of the task's layout.
      settings: how texts are written (seq2seq).
      text_metrics: of TEXT_METRICS, for written texts.
      most: examples to judge, from the beginning; 0: all.
      suppress_ids, first_id: of written texts; see generate.

    Returns:
      (scores by name, (what was asked, what the model gave, what was right) of each example). Both
      are empty for an objective that has no task.
    """
    if objective == "seq2seq":
        rules = {"suppress_ids": suppress_ids, "first_id": first_id}
        return _written(model, params, dataset, settings, text_metrics, most, rules)
    if objective == "classify":
        return _classified(model, params, dataset, most)
    if objective == "tag":
        return _tagged(model, params, dataset, most)
    if objective == "extractive_qa":
        return _answered(model, params, dataset, most)
    return {}, []


def _rows(split: Any, most: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (number of its first row, batch) of a validation split, up to `most` rows."""
    stop = min(most or split.num_rows, split.num_rows)
    for step in range(-(-stop // split.batch_size)):
        yield step * split.batch_size, split.batch(step)


def _written(model, params, dataset, settings, text_metrics, most, rules):
    for name in text_metrics:
        one_of(name, TEXT_METRICS, "metric")
    documents, sources = dataset.documents("validation"), []
    for _, batch in _rows(dataset.validation, most):
        for tokens_S, real_S in zip(batch["source"], batch["source_segment_ids"], strict=True):
            sources.append(tokens_S[real_S > 0].tolist())
    sources = sources[: min(most or len(documents), len(documents))]
    info, tokenizer = dataset.info, dataset.tokenizer
    texts: list[str] = [""] * len(sources)
    # Rows of like length share a batch: little padding, few compiled programs.
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    together = dataset.validation.batch_size
    for begin in range(0, len(order), together):
        rows = order[begin : begin + together]
        # The last batch is filled up with its last row, so that it needs no program of its own.
        filled = rows + rows[-1:] * (together - len(rows))
        written = generate.generate(
            model, params, [sources[row] for row in filled], settings,
            eos_ids=[info.end_id] if info.end_id >= 0 else [], start_id=info.start_id,
            num_ids=tokenizer.vocab_size, decode=tokenizer.decode, **rules,
        )  # fmt: skip
        for row, ids in zip(rows, written, strict=False):
            texts[row] = tokenizer.decode(ids).strip()
    asked = [document.text for document in documents[: len(texts)]]
    right = [document.pair.strip() for document in documents[: len(texts)]]
    scores: dict[str, float] = {}
    for name in text_metrics:
        scores |= getattr(metrics, name)(texts, right)
    return scores, list(zip(asked, texts, right, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _classes(model, params, batch):
    return model.classify(params, model.apply(params, batch).hidden_BTD, batch)


def _classified(model, params, dataset, most):
    given: list[Any] = []
    right: list[Any] = []
    for _, batch in _rows(dataset.validation, most):
        real_B = batch["segment_ids"].any(axis=1)
        logits_BC = np.asarray(_classes(model, params, batch))
        number = logits_BC.shape[1] == 1
        given += (logits_BC[real_B, 0] if number else logits_BC[real_B].argmax(axis=1)).tolist()
        right += batch["labels"][real_B].tolist()
    names, C = dataset.info.class_names, model.config.num_classes
    if C == 1:
        scores = {**metrics.pearson(given, right), **metrics.spearman(given, right)}
    else:
        average = "binary" if C == 2 else "macro"
        scores = {
            **metrics.accuracy(given, right),
            **metrics.f1(given, right, average=average),
            **metrics.matthews(given, right),
        }
        given, right = ([names[label] for label in labels] for labels in (given, right))
    layout, documents = dataset.validation.layout, dataset.documents("validation")
    asked = [documents[layout.document_R[row]].text for row in range(len(given))]
    return scores, [(a, str(g), str(r)) for a, g, r in zip(asked, given, right, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _tags(model, params, batch):
    hidden_BTD = model.apply(params, batch).hidden_BTD
    return model.readout(params, hidden_BTD, "tagger").argmax(axis=-1)


def _tagged(model, params, dataset, most):
    documents, layout = dataset.documents("validation"), dataset.validation.layout
    names = dataset.info.class_names
    given: dict[int, list[str]] = defaultdict(list)  # of a long text, row after row
    right: dict[int, list[str]] = defaultdict(list)
    for first, batch in _rows(dataset.validation, most):
        tags_BT = np.asarray(_tags(model, params, batch))
        for place in np.flatnonzero(batch["segment_ids"].any(axis=1)).tolist():
            document, words_T = int(layout.document_R[first + place]), batch["tags"][place] >= 0
            given[document] += [names[tag] for tag in tags_BT[place][words_T]]
            right[document] += [names[tag] for tag in batch["tags"][place][words_T]]
    flat = [tag for number in right for tag in given[number]]
    scores = dict(metrics.accuracy(flat, [tag for tags in right.values() for tag in tags]))
    if entities.are_spans(names):
        scores |= entities.score(list(given.values()), list(right.values()))
    told = [(documents[n].text, " ".join(given[n]), " ".join(right[n])) for n in right]
    return scores, told


@functools.partial(jax.jit, static_argnums=0)
def _spans(model, params, batch):
    return span_logits(model, params, model.apply(params, batch).hidden_BTD, batch)


def _answered(model, params, dataset, most):
    documents, layout = dataset.documents("validation"), dataset.validation.layout
    windows: dict[int, list] = defaultdict(list)
    for first, batch in _rows(dataset.validation, 0):
        start_BT, end_BT = map(np.asarray, _spans(model, params, batch))
        for place in np.flatnonzero(batch["segment_ids"].any(axis=1)).tolist():
            document, skipped, spans_T2 = layout.features(first + place)
            windows[document].append((skipped, spans_T2, start_BT[place], end_BT[place]))
    wanted = sorted(windows)[: most or None]
    may_be_none = any(not documents[number].answers for number in wanted)
    predictions, truths, told = {}, {}, []
    for number in wanted:
        document = documents[number]
        offsets_N2, parts = squad.join_windows(windows[number])
        answer = squad.decode(document.pair, offsets_N2, parts, no_answer=may_be_none)
        predictions[document.name] = answer.text
        truths[document.name] = [text for _, text in document.answers]
        told.append((document.text, answer.text, (truths[document.name] or [""])[0]))
    return squad.score(predictions, truths, version=2 if may_be_none else 1), told
