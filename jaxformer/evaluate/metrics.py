"""The standard metrics of tasks, from the library that each field reports with.

Every function takes (predictions, references) of equal length and returns a dict of floats.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from jaxformer.errors import UserError, one_of


class Scores(dict[str, float]):
    """Scores by name; `signature` says how they were made ("" where a library gives none)."""

    signature: str = ""


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Returns {"accuracy"}: the share of predictions that equal their reference."""
    library = _library("sklearn.metrics", "accuracy", predictions, references)
    return Scores(accuracy=float(library.accuracy_score(references, predictions)))


def f1(
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    average: str = "binary",
    positive: Any = 1,
) -> Scores:
    """Returns {"f1"}: the harmonic mean of precision and recall; 0 where both are 0.

    Args:
      predictions, references: labels.
      average: "binary" (of the label `positive`), "macro" (the mean over labels) or "micro".
      positive: the label that counts as found.
    """
    one_of(average, ("binary", "macro", "micro"), "f1 average")
    library = _library("sklearn.metrics", "f1", predictions, references)
    if average == "binary":
        # By hand of its two classes: the library takes any other label for a mistake of ours.
        predictions = [label == positive for label in predictions]
        references = [label == positive for label in references]
    value = library.f1_score(references, predictions, average=average, zero_division=0.0)
    return Scores(f1=float(value))


def matthews(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Returns {"matthews"}: correlation of two labellings (Matthews 1975); 0 if one is constant."""
    library = _library("sklearn.metrics", "matthews", predictions, references)
    return Scores(matthews=float(library.matthews_corrcoef(references, predictions)))


def pearson(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Returns {"pearson"}: linear correlation; NaN where one side is constant."""
    return _correlation("pearson", "pearsonr", predictions, references)


def spearman(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Returns {"spearman"}: correlation of ranks; NaN where one side is constant."""
    return _correlation("spearman", "spearmanr", predictions, references)


def bleu(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    lowercase: bool = False,
    tokenize: str = "13a",
) -> Scores:
    """Returns {"bleu" in 0 … 100, "brevity_penalty", "bleu_1" … "bleu_4" (precisions)} of a corpus.

    BLEU (Papineni 2002) by sacrebleu (Post 2018); report `.signature` beside it.

    Args:
      predictions: detokenised texts.
      references: one text, or several texts, for each prediction.
      lowercase: whether case does not count.
      tokenize: sacrebleu's tokenizer: "13a" (its default), "intl", "char", "zh", "none".
    """
    library = _library("sacrebleu", "bleu", predictions, references)
    metric = library.BLEU(lowercase=lowercase, tokenize=tokenize)
    found = metric.corpus_score(list(predictions), _streams(references))
    scores = Scores(bleu=found.score, brevity_penalty=found.bp)
    scores |= {f"bleu_{n}": value for n, value in enumerate(found.precisions, 1)}
    scores.signature = str(metric.get_signature())
    return scores


def chrf(
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    word_order: int = 0,
) -> Scores:
    """Returns {"chrf"} in 0 … 100: F-score of character n-grams (Popović 2015) by sacrebleu.

    Args:
      predictions, references: see `bleu`.
      word_order: n-grams of words that count too; 2 is chrF++.
    """
    library = _library("sacrebleu", "chrf", predictions, references)
    metric = library.CHRF(word_order=word_order)
    scores = Scores(chrf=metric.corpus_score(list(predictions), _streams(references)).score)
    scores.signature = str(metric.get_signature())
    return scores


def rouge(predictions: Sequence[str], references: Sequence[str], *, stemmer: bool = True) -> Scores:
    """Returns {"rouge1", "rouge2", "rougeL", "rougeLsum"}: F-measures in 0 … 1, means over texts.

    ROUGE (Lin 2004) by rouge-score. "rougeLsum" takes lines as sentences; it is what papers on
    summaries of several sentences call ROUGE-L.

    Args:
      predictions, references: texts; in English, the library knows only a-z and 0-9.
      stemmer: whether words count by their Porter stem.
    """
    library = _library("rouge_score.rouge_scorer", "rouge", predictions, references)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = library.RougeScorer(names, use_stemmer=stemmer)
    found = [scorer.score(ref, text) for text, ref in zip(predictions, references, strict=True)]
    return Scores({name: sum(f[name].fmeasure for f in found) / len(found) for name in names})


def _correlation(
    name: str, function: str, predictions: Sequence[float], references: Sequence[float]
) -> Scores:
    library = _library("scipy.stats", name, predictions, references)
    if len(predictions) < 2:
        raise UserError(f"{name} needs two pairs at least; there is {len(predictions)}")
    found = getattr(library, function)(predictions, references)
    return Scores({name: float(found.statistic)})


def _library(module: str, metric: str, predictions: Sequence, references: Sequence) -> Any:
    """Checks what every metric is given, and returns the library that computes it."""
    if len(predictions) != len(references):
        raise UserError(
            f"{metric}: {len(predictions)} predictions, but {len(references)} references; give one "
            "reference for each"
        )
    if len(predictions) == 0:
        raise UserError(f"{metric}: there are no predictions; give one at least")
    try:
        return importlib.import_module(module)
    except ImportError:
        packages = {"sklearn": "scikit-learn", "rouge_score": "rouge-score"}
        top = module.partition(".")[0]
        raise UserError(
            f"{metric} needs {packages.get(top, top)}, which is not installed; run "
            'pip install "jaxformer[eval]"'
        ) from None


def _streams(references: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Returns sacrebleu's streams: the first reference of every text, the second, ..."""
    several = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    for index, texts in enumerate(several):
        if not texts:
            raise UserError(f"prediction {index} has no reference; give one at least")
    most = max(len(texts) for texts in several)
    return [[t[i] if i < len(t) else None for t in several] for i in range(most)]
