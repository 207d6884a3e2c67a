"""A needle in a haystack: four needles in a long filler, one of which the first character asks for.

A needle is one symbol that stands for a key and a value, one of 8 x 10; keys are capital letters,
values digits, the filler small letters. The text begins with a key, and the class is the value of
that key's needle, so what reads the first token must find one place among all (after the
associative recall of Ba 2016, section 4.1, in a filler). Every value is equally likely; who names
the most frequent of the four, without their keys, is right in 0.384 of the texts: only more than
that shows that a key was found.
"""

from __future__ import annotations

import random

PAIRS, KEYS, FILLER = 4, "ABCDEFGH", "abcdefghijklmnopqrstuvwxyz"
NEEDLES = 0x100  # the symbol of the first key and the value 0; keys follow each other in tens
LEAST = 16  # characters: the needles, and some filler


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
    keys, places, pairs = list(range(len(KEYS))), list(range(size)), []
    for _ in range(PAIRS):
        key, place = (free.pop(int(draw() * len(free))) for free in (keys, places))
        value = int(draw() * 10)
        text[place] = needle(key, value)
        pairs.append((key, value))
    key, value = pairs[int(draw() * PAIRS)]
    return KEYS[key] + "".join(text), str(value)


def needle(key: int, value: int) -> str:
    """Returns the symbol of a key's number and a value."""
    return chr(NEEDLES + 10 * key + value)
