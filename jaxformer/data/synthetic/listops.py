"""ListOps (Nangia & Bowman 2018): the value of a nested list of operations on digits.

As in the Long Range Arena (Tay 2021, section 2.2.1): maximum, minimum, median and sum modulo 10, of
two to ten arguments, ten levels deep, in texts between a quarter of the greatest length and all of
it (there 500 to 2,000 tokens). One character is a token: "A12]" opens a list with its operator.
The classes are the ten values. They are not equally frequent, for maxima are large and minima small
(as in the original).
"""

from __future__ import annotations

import random

MAX, MIN, MEDIAN, SUM, CLOSE = "A", "I", "D", "S", "]"
OPERATORS = (MAX, MIN, MEDIAN, SUM)
MAX_DEPTH, MAX_ARGUMENTS = 10, 10
OPERATION = 0.25  # the probability that an argument is a list of its own, as in the original
LEAST = 16  # characters of the shortest greatest length


def example(seed: int, index: int, length: int) -> tuple[str, str]:
    """Returns text and class number `index` of a seed; a pure function.

    Args:
      seed: any whole number.
      index: which one.
      length: the most characters; there are a quarter as many at least.
    """
    draw = random.Random(f"listops {seed} {index}").random  # the same in every version of Python
    least = max(4, length // 4)
    while True:
        text: list[str] = []
        value = _list(draw, 1, length, text)
        if value is not None and len(text) >= least:
            return "".join(text), str(value)


def _list(draw, depth: int, length: int, text: list[str]) -> int | None:
    """Writes a list at a depth to `text`; returns its value, None where there is no room for it."""
    operator = OPERATORS[int(draw() * 4)]
    text.append(operator)
    values = []
    for _ in range(2 + int(draw() * (MAX_ARGUMENTS - 1))):
        if depth < MAX_DEPTH and draw() < OPERATION:
            value = _list(draw, depth + 1, length, text)
            if value is None:
                return None
        else:
            value = int(draw() * 10)
            text.append(str(value))
        values.append(value)
        if len(text) >= length:  # its end has no room
            return None
    text.append(CLOSE)
    return apply(operator, values)


def apply(operator: str, values: list[int]) -> int:
    """Returns the value of a list; a median between two digits is rounded down."""
    if operator == MAX:
        return max(values)
    if operator == MIN:
        return min(values)
    if operator == SUM:
        return sum(values) % 10
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2
