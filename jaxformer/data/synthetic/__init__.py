"""Labelled texts that are made, not read: example i of a task is a function of (seed, i).

A name says which, "listops:4000:512" or "listops:4000:512:1": 4,000 texts of at most 512
characters, seed 0 or 1. Each text has one character for a token, and a class.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from jaxformer.data.synthetic import listops, needle
from jaxformer.errors import UserError

TASKS = {"listops": listops, "needle": needle}
FORM = "NAME:COUNT:LENGTH or NAME:COUNT:LENGTH:SEED, such as listops:4000:512"


@dataclasses.dataclass(frozen=True)
class Made:
    """What a name asks for: so many texts of a task, none longer than `length` characters."""

    task: str
    count: int
    length: int
    seed: int = 0

    def examples(self) -> Iterator[tuple[str, str]]:
        """Yields (text, class)."""
        make = TASKS[self.task].example
        for index in range(self.count):
            yield make(self.seed, index, self.length)


def is_made(name: str) -> bool:
    """Returns whether a source's name is that of a task, and not of a file."""
    return name.partition(":")[0] in TASKS and not os.path.exists(name)


def parse(name: str, option: str = "data.source") -> Made:
    """Returns what a name asks for.

    Raises:
      UserError: it is not of the form, or the texts would be too short for the task.
    """
    task, *rest = name.split(":")
    if len(rest) not in (2, 3) or not all(x.isascii() and x.isdigit() for x in rest):
        raise UserError(f"{option}={name!r}: give {FORM}")
    count, length, *seed = map(int, rest)
    least = TASKS[task].LEAST
    if count < 1 or length < least:
        raise UserError(
            f"{option}={name!r}: {task} needs 1 text or more, of {least} characters or more"
        )
    return Made(task, count, length, *seed)
