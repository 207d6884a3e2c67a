"""The wrappers of metrics: figures by hand, and the libraries' own."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import metrics

PREDICTED, TRUE = [1, 0, 1, 1, 0, 2], [1, 0, 0, 1, 1, 2]


def test_labels_by_hand():
    assert metrics.accuracy(PREDICTED, TRUE) == {"accuracy": pytest.approx(4 / 6)}
    assert metrics.f1(PREDICTED, TRUE) == {"f1": pytest.approx(2 / 3)}  # of label 1
    assert metrics.f1(PREDICTED, TRUE, positive=0) == {"f1": pytest.approx(1 / 2)}
    assert metrics.f1(PREDICTED, TRUE, average="macro")["f1"] == pytest.approx(
        (1 / 2 + 2 / 3 + 1) / 3
    )
    assert metrics.f1(PREDICTED, TRUE, average="micro")["f1"] == pytest.approx(4 / 6)
    assert metrics.f1(["ham", "spam"], ["spam", "spam"], positive="spam")["f1"] == pytest.approx(
        2 / 3
    )
    assert metrics.f1([0, 0], [0, 1])["f1"] == 0.0
    a, b = [1, 1, 0, 0, 1], [1, 0, 0, 0, 1]  # tp 2, tn 2, fp 1, fn 0
    assert metrics.matthews(a, b)["matthews"] == pytest.approx(4 / math.sqrt(3 * 2 * 3 * 2))
    assert metrics.matthews([1, 1], [0, 1])["matthews"] == 0.0
    # Predictions come first: precision and recall would change places.
    assert metrics.accuracy(np.array(PREDICTED), np.array(TRUE))["accuracy"] == pytest.approx(4 / 6)


def test_correlations_by_hand():
    x, y = [1.0, 2.0, 3.0, 10.0], [2.0, 3.0, 4.0, 5.0]
    assert metrics.spearman(x, y) == {"spearman": pytest.approx(1.0)}
    assert metrics.pearson(x, y) == {"pearson": pytest.approx(np.corrcoef(x, y)[0, 1])}
    assert metrics.spearman(x, [1, 1, 0, 0])["spearman"] == pytest.approx(-math.sqrt(0.8))


def test_bleu_and_chrf_with_their_signatures():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["The cat sat on the mat.", "A dog runs in the park today."]
    truths = ["The cat sat on the mat.", "A dog ran in the park."]
    found = metrics.bleu(texts, truths)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [truths]).score)
    assert 0 < found["bleu"] < 100 and set(found) >= {"bleu_1", "bleu_4", "brevity_penalty"}
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert metrics.bleu(texts, texts)["bleu"] == pytest.approx(100)
    lowered = metrics.bleu([t.lower() for t in texts], texts, lowercase=True)
    assert lowered["bleu"] == pytest.approx(100) and "case:lc" in lowered.signature
    # Several references, not as many for each text.
    several = metrics.bleu(texts, [[truths[0]], [truths[1], texts[1]]])
    assert several["bleu"] == pytest.approx(100)
    plus = metrics.chrf(texts, truths, word_order=2)
    assert plus["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [truths], word_order=2).score)
    assert "nw:2" in plus.signature and "nw:0" in metrics.chrf(texts, truths).signature


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    found = metrics.rouge(["the cat sat", "x"], ["the cat ran fast", "x"])
    assert found["rouge1"] == pytest.approx((2 * 2 / 7 + 1) / 2)
    assert found["rouge2"] == pytest.approx((2 * 1 / 5 + 0) / 2)
    assert found["rougeL"] == pytest.approx((2 * 2 / 7 + 1) / 2)
    assert metrics.rouge(["cats"], ["cat"])["rouge1"] == 1.0
    assert metrics.rouge(["cats"], ["cat"], stemmer=False)["rouge1"] == 0.0
    swapped = metrics.rouge(["b b\na a"], ["a a\nb b"])
    assert swapped["rougeLsum"] == 1.0 and swapped["rougeL"] == 0.5


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "pearson", "spearman", "bleu",
                                  "chrf", "rouge"])  # fmt: skip
def test_mistakes_and_missing_packages_are_told_in_one_line(name, monkeypatch):
    metric = getattr(metrics, name)
    with pytest.raises(UserError, match=f"{name}: 2 predictions, but 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(UserError, match=f"{name}: there are no predictions"):
        metric([], [])
    for package in ("sklearn", "scipy", "sacrebleu", "rouge_score"):
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'is not installed; run pip install "jaxformer\[eval\]"'):
        metric(["a", "b"], ["a", "b"])


def test_a_text_without_reference_is_named():
    pytest.importorskip("sacrebleu")
    with pytest.raises(UserError, match="prediction 1 has no reference"):
        metrics.bleu(["a", "b"], [["a"], []])
