"""Classes and tags in a wanted order: what is kept numbers them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.errors import UserError, suggest


def arrange(
    wanted: Sequence[str], names: Sequence[str], corpora: dict[str, Corpus]
) -> tuple[tuple[str, ...], dict[str, Corpus]]:
    """Returns the classes' names in the order of their numbers, and the corpora numbered so.

    Args:
      wanted: data.class_names; it may name classes that no document has. () keeps `names`.
      names: those that the documents have, as they are numbered in the cache.
      corpora: both splits.

    Raises:
      UserError: `wanted` leaves out one of `names`, or has one twice.
    """
    if not wanted or tuple(wanted) == tuple(names) or not names:
        return tuple(names), corpora
    if len(set(wanted)) < len(wanted):
        raise UserError(f"data.class_names={','.join(wanted)} has a name twice; leave one out")
    for name in names:
        if name not in wanted:
            raise UserError(
                f"data.class_names={','.join(wanted)} lacks {name!r}{suggest(name, wanted)}, which "
                "documents have; name it too"
            )
    place_C = np.array([*(list(wanted).index(name) for name in names), -1], np.int32)  # -1 stays

    def renumbered(corpus: Corpus) -> Corpus:
        more = dict(corpus.more)
        if "tags_N" in more:
            more["tags_N"] = place_C[more["tags_N"]]
        return dataclasses.replace(corpus, labels_J=place_C[corpus.labels_J], more=more)

    return tuple(wanted), {split: renumbered(corpus) for split, corpus in corpora.items()}
