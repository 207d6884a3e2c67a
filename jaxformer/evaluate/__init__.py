"""Running a model over a dataset, and its scores on tasks.

`metrics`, `squad`, `prompting`, `embed`, `knn_lm`, `passages` and `lm_eval` are imported by name.
"""

from __future__ import annotations

from jaxformer.evaluate.likelihood import loglikelihoods, perplexity, rolling_loglikelihood
from jaxformer.evaluate.loss import evaluate, make_eval_step

__all__ = [
    "evaluate",
    "loglikelihoods",
    "make_eval_step",
    "perplexity",
    "rolling_loglikelihood",
]
