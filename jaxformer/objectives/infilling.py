"""Denoising: spans become one mask each, sentences change places, and the target is the whole text.

Lewis 2020 (BART), sections 2.2 and 4. The host does it; what is left is sequence to sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.objectives import likelihood, seq2seq
from jaxformer.objectives.span_corruption import check_spans

FAMILIES = seq2seq.FAMILIES
LAYOUTS = ("windows", "padded")
PREDICTS_TEXT = True
make = seq2seq.make


@dataclasses.dataclass(frozen=True)
class Config(likelihood.Config):
    """rate: the part of the tokens that is masked; mean_span: the mean length of the spans (their
    lengths are Poisson's); permute: sentences change places. The rest: see likelihood.Config."""

    rate: float = 0.3
    mean_span: float = 3.0
    permute: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_spans(self.rate, self.mean_span, "BART's are 0.3 and 3")


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return seq2seq.adapt(config, info)


def host_transform(config: Config) -> tuple[str, dict[str, Any]]:
    """Returns the kind of data.corruption that makes the batches, and its options."""
    options = {"rate": config.rate, "mean_span": config.mean_span, "permute": config.permute}
    return "text_infilling", options
