"""Which stored tensor is which of a table's, and everything that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from jaxformer.interop import copying
from jaxformer.interop.family import Family, canonical
from jaxformer.interop.reader import Stored, grouped
from jaxformer.interop.table import Shape, Table


def match(
    family: Family, table: Table, wanted: Table, stored: Mapping[str, Stored], *, fresh: bool
) -> tuple[dict[str, Stored], list[str]]:
    """Finds each published tensor among those stored, and says what does not fit.

    Args:
      family: the checkpoint's.
      table: of the checkpoint's own config, which knows all that may be in the file.
      wanted: of the config that is asked for.
      stored: by the file's names.
      fresh: whether tensors of `wanted` alone may be missing.

    Returns:
      ({name in `wanted`: where it is stored}, a line for each thing that is wrong).
    """
    named: dict[str, str] = {}  # the table's name -> the file's
    unknown, missing, problems = [], [], []
    for name in stored:
        known = canonical(family, name, table.published)
        if known is None:
            continue
        if known not in table.published:
            unknown.append(name)
        elif known in named:
            problems.append(f"{named[known]!r} and {name!r} are the same tensor")
        else:
            named[known] = name
    problems += _of_names(f"no rule of {family.model_type} reads", unknown)
    # By slices of ours, for the names may differ with the heads: BertModel's have no "bert.".
    of_slice: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for use in ("both", "read"):
        for name, tensor in table.published.items():
            if tensor.use == use:
                found = of_slice.setdefault(tensor.slots[0][:2], [])
                found += [named[name]] if name in named else []
    sources: dict[str, Stored] = {}
    for name, tensor in wanted.published.items():
        if tensor.use != "both":
            continue
        names = of_slice.get(tensor.slots[0][:2])
        if not names:
            if names is not None or not fresh:
                missing.append(name)
            continue
        first, *rest = names
        problem = _misfit(first, stored[first], tensor.shape)
        for second in rest:
            if not problem and not copying.same(stored[first], stored[second]):
                problem = (
                    f"{second!r} differs from {first!r}, though config.json ties them; set "
                    "tie_word_embeddings to false there"
                )
        if problem:
            problems.append(problem)
        else:
            sources[name] = stored[first]
    return sources, problems + _of_names("no file holds", missing)


def _misfit(name: str, stored: Stored, shape: Shape) -> str:
    """Returns why a stored tensor cannot be read as one of `shape`, or ""."""
    if stored.dtype not in copying.DTYPES:
        return f"{name!r} is {stored.dtype}; only {', '.join(copying.DTYPES)} can be read"
    if stored.shape != shape:
        return f"{name!r} has shape {list(stored.shape)}, and config.json makes it {list(shape)}"
    return ""


def _of_names(words: str, names: list[str]) -> list[str]:
    return [
        f"{words} {pattern!r}" + (f" ({len(found)} tensors)" if len(found) > 1 else "")
        for pattern, found in grouped(names).items()
    ]
