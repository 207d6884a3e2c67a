"""A needle in a haystack: one digit, hidden in a long filler; the class is that digit.

The filler is small letters, and the text begins with "?": what reads the first token alone
(model.pooling=first) must find one place among all, however far away (the passkey retrieval of
Mohtashami & Jaggi 2023, section 4.2, with a passkey of one token). Every place and digit is equally
likely, so a model that sees so many tokens from there is right as often as the needle is among
them, and once in ten times otherwise.
"""

from __future__ import annotations

import random

FILLER = "abcdefghijklmnopqrstuvwxyz"
LEAST = 16  # characters: the question, the needle, and some filler


def example(seed: int, index: int, length: int) -> tuple[str, str]:
    """Returns text and class number `index` of a seed; a pure function.

    Args:
      seed: any whole number.
      index: which one.
      length: the most characters; there are three quarters as many at least.
    """
    draw = random.Random(f"needle {seed} {index}").random  # the same in every version of Python
    size = length - int(draw() * (length // 4)) - 1  # without the question
    text = [FILLER[int(draw() * len(FILLER))] for _ in range(size)]
    value = str(int(draw() * 10))
    text[int(draw() * size)] = value
    return "?" + "".join(text), value
