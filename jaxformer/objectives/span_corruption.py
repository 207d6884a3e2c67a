"""Span corruption: spans of a text are taken out, and the target names them (Raffel 2020, 3.1.4).

The host takes them out; what is left is sequence to sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxformer.errors import UserError
from jaxformer.objectives import likelihood, seq2seq

FAMILIES = seq2seq.FAMILIES
LAYOUTS = ("windows", "padded")
make = seq2seq.make


@dataclasses.dataclass(frozen=True)
class Config(likelihood.Config):
    """rate: the part of the tokens that is taken out; mean_span: the mean length of the spans. The
    rest: see likelihood.Config."""

    rate: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        check_spans(self.rate, self.mean_span, "T5's are 0.15 and 3")


def check_spans(rate: float, mean_span: float, usual: str) -> None:
    """Raises UserError unless the rate is in (0, 1) and the mean length of spans at least 1."""
    if not 0.0 < rate < 1.0 or mean_span < 1:
        raise UserError(
            f"objective.rate={rate} must be between 0 and 1 and objective.mean_span={mean_span} at "
            f"least 1; {usual}"
        )


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return seq2seq.adapt(config, info)


def host_transform(config: Config) -> tuple[str, dict[str, Any]]:
    """Returns the kind of data.corruption that makes the batches, and its options."""
    return "span_corruption", {"rate": config.rate, "mean_span": config.mean_span}
