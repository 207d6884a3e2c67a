"""Running a model over a dataset."""

from __future__ import annotations

from jaxformer.evaluate.loss import evaluate, make_eval_step

__all__ = ["evaluate", "make_eval_step"]
