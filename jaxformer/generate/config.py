"""What to write, and how to choose it."""

from __future__ import annotations

import dataclasses

from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to write and how to draw it.

    prompts (texts to go on from, one row each); max_new_tokens; temperature (0: always the most
    likely token); top_k (0: off), top_p (1: off; Holtzman 2020), min_p (0: off; Nguyen 2024);
    seed; stop (strings, or token ids, at which a row ends; they are not part of the result);
    min_new_tokens (before them no row ends at a stop id); no_repeat_ngram (so many tokens in a row
    never come twice, Paulus 2018; 0: off).

    num_beams: > 1 searches for the most likely text instead of drawing (Graves 2012, Sutskever
    2014), by the sum of log-probabilities over the length to the power of length_penalty;
    early_stopping ends a row at num_beams finished texts, without it as soon as none of the running
    ones can become better.
    """

    prompts: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str | int, ...] = ()
    min_new_tokens: int = 0
    no_repeat_ngram: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(
                f"generate.max_new_tokens is {self.max_new_tokens}; it must be at least 1"
            )
        if self.temperature < 0:
            raise UserError(
                f"generate.temperature is {self.temperature}; it must be 0 (greedy) or above"
            )
        if self.top_k < 0:
            raise UserError(f"generate.top_k is {self.top_k}; it must be 0 (off) or above")
        for key in ("top_p", "min_p"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"generate.{key} is {getattr(self, key)}; it must be in [0, 1]")
        if "" in self.stop:
            raise UserError("generate.stop holds an empty string; leave it out")
        for key in ("min_new_tokens", "no_repeat_ngram"):
            if getattr(self, key) < 0:
                raise UserError(
                    f"generate.{key} is {getattr(self, key)}; it must be 0 (off) or more"
                )
        if self.num_beams < 1:
            raise UserError(f"generate.num_beams is {self.num_beams}; it must be at least 1")
        if self.num_beams > 1 and any(isinstance(stop, str) for stop in self.stop):
            raise UserError(
                "generate.stop holds a string, which beam search cannot end at; give token ids, or "
                "set generate.num_beams=1"
            )
