"""What a model is trained for. One file an objective; a new objective is a new file.

Each file holds a frozen `Config`, `FAMILIES` of models and `LAYOUTS` (of data.Config) that it can
read, `adapt(config, info) -> dict` (what it asks of the model's config) and `make(config, model,
info) -> Loss`, a function `(params, batch, key, train) -> (loss, metrics)`. Only some have:
  LABELS: the values of data.labels that they read.
  PREDICTS_TEXT = True: the loss is the likelihood of ordinary text, so that it may be compared with
    an entropy, and its perplexity and bits per byte mean something.
  host_transform(config) -> (kind, options): the data are changed by data.corruption.make first.

`loss` is the mean over the real tokens (or rows) of the batch; `metrics` maps names to float32
(sum, count), so that accumulation, padding and sharding average correctly. `metrics["loss"]` is
the loss itself as such a pair; its count weighs this batch among others. A loss that is made of
several means needs to know the whole batch's counts before the batch is cut: see shared.balance.
"""

from __future__ import annotations

from types import ModuleType

from jaxformer.objectives import (
    bert_pretraining,
    causal_lm,
    classify,
    extractive_qa,
    infilling,
    masked_lm,
    permutation_lm,
    replaced_token,
    seq2seq,
    span_corruption,
    tag,
)  # fmt: skip

OBJECTIVES: dict[str, ModuleType] = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "classify": classify,
    "bert_pretraining": bert_pretraining,
    "replaced_token": replaced_token,
    "permutation_lm": permutation_lm,
    "seq2seq": seq2seq,
    "span_corruption": span_corruption,
    "infilling": infilling,
    "tag": tag,
    "extractive_qa": extractive_qa,
}
