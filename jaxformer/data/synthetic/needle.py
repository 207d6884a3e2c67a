"""A needle in a haystack: pairs of key and value, hidden in a long filler, one asked at the end.

A key is a capital letter, its value the digit behind it, the filler small letters; the text ends in
"?" and a key, and the class is that key's value. Four pairs stand anywhere, so that the values
alone do not tell the answer (after the associative recall of Ba 2016, section 4.1, in a filler).
Every value is equally likely; who names the most frequent of the four, without their keys, is right
in 0.384 of the texts: only more than that shows that a key was found.
"""

from __future__ import annotations

import random

PAIRS, KEYS, FILLER = 4, "ABCDEFGH", "abcdefghijklmnopqrstuvwxyz"
LEAST = 16  # characters: the pairs, and some filler


def example(seed: int, index: int, length: int) -> tuple[str, str]:
    """Returns text and class number `index` of a seed; a pure function.

    Args:
      seed: any whole number.
      index: which one.
      length: the most characters; there are three quarters as many at least.
    """
    draw = random.Random(f"needle {seed} {index}").random  # the same in every version of Python
    size = length - int(draw() * (length // 4)) - 2  # without the question
    text = [FILLER[int(draw() * len(FILLER))] for _ in range(size)]
    keys, values = list(KEYS), []
    # Pairs begin at places that leave room for each other: those of `size` less one a pair.
    places: set[int] = set()
    while len(places) < PAIRS:
        places.add(int(draw() * (size - PAIRS)))
    for number, place in enumerate(sorted(places)):
        key, value = keys.pop(int(draw() * len(keys))), str(int(draw() * 10))
        text[place + number : place + number + 2] = [key, value]
        values.append((key, value))
    key, value = values[int(draw() * PAIRS)]
    return "".join(text) + f"?{key}", value
