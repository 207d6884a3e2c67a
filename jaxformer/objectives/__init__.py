"""What a model is trained for. One file an objective; a new objective is a new file.

Each file holds a frozen `Config`, `LAYOUTS` (of data.Config) that it can read, `adapt(config, info)
-> dict` (what it asks of the model's config) and `make(config, model, info) -> Loss`, a function
`(params, batch, key, train) -> (loss, metrics)`.

`loss` is the mean over the real tokens (or rows) of the batch; `metrics` maps names to float32
(sum, count), so that accumulation, padding and sharding average correctly. `metrics["loss"]` is
the loss itself as such a pair; its count weighs this batch among others.
"""

from __future__ import annotations

from types import ModuleType

from jaxformer.objectives import causal_lm, classify, masked_lm

OBJECTIVES: dict[str, ModuleType] = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "classify": classify,
}
