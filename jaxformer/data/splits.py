"""Which documents are held out for validation."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator

from jaxformer.data import documents, sources
from jaxformer.data.config import Config
from jaxformer.data.documents import Document
from jaxformer.data.sources import Source

SPLITS = ("train", "validation")


def divider(config: Config, found: list[Source]) -> Callable[[], Iterator[tuple[str, Document]]]:
    """Returns what yields every document with the name of its split."""
    source = found[0]
    if len(found) == 2:
        return lambda: itertools.chain(
            (("train", document) for document in documents.read(source, config)),
            (("validation", document) for document in documents.read(found[1], config)),
        )
    fraction = config.validation_fraction
    single = source.kind == "text" and len(source.files) == 1
    grouped = config.layout == "qa"
    if config.split == "tail" or (config.split == "auto" and single):
        if single:
            return lambda: _cut(documents.read(source, config), fraction)
        count = sum(1 for _ in documents.read(source, config))
        held_out = max(1, round(count * fraction))
        return lambda: (
            ("train" if number < count - held_out else "validation", document)
            for number, document in enumerate(documents.read(source, config))
        )
    chosen = _held_out_articles(source, config) if grouped else _held_out(source, fraction)
    return lambda: (
        ("validation" if chosen(document.key) else "train", document)
        for document in documents.read(source, config)
    )


def _cut(parts: Iterator[Document], fraction: float) -> Iterator[tuple[str, Document]]:
    """Divides one text (or its snippets, in order) at a character."""
    whole = list(parts)
    if len(whole) > 1:
        train = len(whole) - max(1, round(len(whole) * fraction))
        yield from (("train", document) for document in whole[:train])
        yield from (("validation", document) for document in whole[train:])
    elif whole:
        at = int(len(whole[0].text) * (1 - fraction))
        for split, text in zip(SPLITS, (whole[0].text[:at], whole[0].text[at:])):
            if text:
                yield split, whole[0]._replace(text=text)


def _held_out(source: Source, fraction: float) -> Callable[[int], bool]:
    """Returns which documents' keys are validation.

    Rows are many, and equal ones must stay together: the keys below the fraction. Files may be
    few: those with the smallest keys, as many as the fraction says, and from each package alike
    (whatever the labels, so that a model which is fine-tuned to tell packages was not pretrained
    on the files that test it).
    """
    if source.kind != "text":
        return lambda key: key < fraction * 2.0**64
    packages: dict[str, list[int]] = {}
    for name in source.names:
        packages.setdefault(sources.package(name), []).append(sources.key(name))
    few = [keys for keys in packages.values() if len(keys) < sources.PACKAGE_FILES]
    groups = [keys for keys in packages.values() if len(keys) >= sources.PACKAGE_FILES]
    chosen: set[int] = set()
    for keys in [*groups, list(itertools.chain(*few))]:
        chosen.update(sorted(keys)[: max(1, round(len(keys) * fraction))])
    return chosen.__contains__


def _held_out_articles(source: Source, config: Config) -> Callable[[int], bool]:
    """Returns which articles' keys are validation: the smallest, as long as their questions are no
    more than the fraction says. They may be few, as files may."""
    counts = collections.Counter(document.key for document in documents.read(source, config))
    chosen: set[int] = set()
    left = counts.total() * config.validation_fraction
    for key in sorted(counts):
        if counts[key] <= left or not chosen:
            chosen.add(key)
            left -= counts[key]
    return chosen.__contains__
