"""What a family of published checkpoints says of itself, and how its config.json is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.errors import UserError, suggest
from jaxformer.interop.table import Rule

HF = Mapping[str, Any]
LARGEST = 1 << 24  # of a model's sizes; beyond it a config.json is damaged


class Family(NamedTuple):
    """One family of checkpoints: a module of this folder makes one, families.py names it.

    model_type: as in config.json.
    config_class: our model's Config (its class tells the model's family).
    architectures: what config.json may name as its first architecture.
    read_config: (config.json, the names of the tensors there) -> our Config. It raises UserError
      for every setting that changes the computation and that ours lacks; see `setting`.
    write_config: our Config -> config.json, with "architectures"; no need to look at settings that
      the family lacks, for a config that `read_config` does not give back is refused.
    table: our Config -> the rules of all its parameters.
    prefix: of the base model's names, which checkpoints leave out or add.
    renames: (pattern, replacement) of old names; ignored: patterns of names that are no weights,
      both matched on the name as it stands in the file.
    reduce: our Config -> the same with those heads only that one published class has together;
      the other heads are left out in writing.
    """

    model_type: str
    config_class: type
    architectures: tuple[str, ...]
    read_config: Callable[[HF, frozenset[str]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], tuple[Rule, ...]]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    reduce: Callable[[Any], Any] = lambda config: config


def canonical(family: Family, name: str, known: Mapping[str, Any] | frozenset[str]) -> str | None:
    """Returns the table's name of a tensor; None if it is to be ignored; itself if unknown."""
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    prefix = family.prefix
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in known:
            return candidate
    return None if any(re.fullmatch(pattern, name) for pattern in family.ignored) else name


def setting(hf: HF, key: str, *supported: Any, default: Any = None) -> Any:
    """Returns config.json's value of a key (`default` where it is absent or null).

    Raises:
      UserError: the value is not one of `supported` (where any are given).
    """
    value = hf.get(key)
    value = default if value is None else value
    if supported and value not in supported:
        valid = " or ".join(repr(choice) for choice in dict.fromkeys(supported))
        raise UserError(f"config.json: {key} is {value!r}; supported: {valid}")
    return value


def sizes(hf: HF, **keys: str) -> dict[str, Any]:
    """Returns {our key: the positive integer at config.json's key} for each pair given."""
    found = {}
    for ours, key in keys.items():
        value = hf.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
            raise UserError(
                f"config.json: {key} is {value!r}; it must be a positive integer, at most {LARGEST}"
            )
        found[ours] = value
    return found


# Published names of activations -> ours. "gelu_new" and its kin are one tanh formula.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
    "relu2": "relu2", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid", "tanh": "tanh",
}  # fmt: skip
_PUBLISHED = {"gelu_tanh": "gelu_new"}


def activation(hf: HF, key: str, default: str) -> str:
    """Returns our name of the activation that config.json names at `key`."""
    name = hf.get(key) or default
    if name not in ACTIVATIONS:
        raise UserError(
            f"config.json: {key} is {name!r}{suggest(str(name), ACTIVATIONS)}; "
            f"supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def published_activation(name: str) -> str:
    """Returns the published name of our activation."""
    return _PUBLISHED.get(name, name)


def architecture(hf: HF, supported: tuple[str, ...]) -> str:
    """Returns config.json's first architecture, "" where it names none.

    Raises:
      UserError: it is not one of `supported`.
    """
    names = hf.get("architectures") or [""]
    name = names[0] if isinstance(names, list) else names
    if name and name not in supported:
        raise UserError(
            f"config.json: architectures is {name!r}{suggest(str(name), supported)}; "
            f"supported: {', '.join(supported)}"
        )
    return name


def num_labels(hf: HF) -> int:
    """Returns how many labels config.json speaks of (2 where it does not, as transformers)."""
    labels = hf.get("id2label")
    return len(labels) if labels else setting(hf, "num_labels", default=2)


def labels(names: int | Sequence[str]) -> dict[str, Any]:
    """Returns the keys of config.json that tell the labels' names: LABEL_0 ... of a number."""
    listed = [f"LABEL_{i}" for i in range(names)] if isinstance(names, int) else list(names)
    return {
        "id2label": {str(i): name for i, name in enumerate(listed)},
        "label2id": {name: i for i, name in enumerate(listed)},
    }
