"""Names found in a text, scored whole: precision, recall and F1 as CoNLL's shared tasks count them.

A name is a run of words of one kind; it is right if its first word, its last word and its kind are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxformer.errors import UserError

_PREFIXES = ("B", "I", "E", "S")


def are_spans(tags: Iterable[str]) -> bool:
    """Returns whether tags mark names: each is "O", or B-, I-, E- or S- and a kind."""
    tags = list(tags)
    marked = [tag.partition("-") for tag in tags if tag != "O"]
    return bool(marked) and all(prefix in _PREFIXES and kind for prefix, _, kind in marked)


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Returns (first word, word after the last, kind) of each name in a sentence.

    B- begins a name, S- is one alone, E- ends one; I- goes on with a name of its kind, and else
    begins one, as in IOB1 (Ramshaw 1995; conlleval).

    Args:
      tags: one a word.
    """
    found, begin, kind, ended = set(), -1, "", False
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix in ("I", "E") and name == kind and not ended
        if begin >= 0 and not goes_on:
            found.add((begin, place, kind))
            begin = -1
        if begin < 0 and prefix in _PREFIXES:
            begin, kind = place, name
        ended = prefix in ("E", "S")
    return found


def score(given: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns {"precision", "recall", "f1"} over the names of all sentences; 0 where there is none.

    Args:
      given, right: the tags of each sentence, one a word (Tjong Kim Sang 2003, section 2.4).

    Raises:
      UserError: sentences of other lengths.
    """
    hits = told = there = 0
    for number, (ours, theirs) in enumerate(zip(given, right, strict=True)):
        if len(ours) != len(theirs):
            raise UserError(
                f"sentence {number} has {len(ours)} tags given and {len(theirs)} right ones"
            )
        found, wanted = spans(ours), spans(theirs)
        hits, told, there = hits + len(found & wanted), told + len(found), there + len(wanted)
    precision, recall = hits / max(told, 1), hits / max(there, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-30)
    return {"precision": precision, "recall": recall, "f1": f1}
