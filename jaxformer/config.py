"""The border between a ConfigDict and the frozen dataclasses that the code works with."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxformer.errors import UserError, suggest

C = TypeVar("C")


def build(cls: type[C], mapping: Mapping[str, Any], where: str) -> C:
    """Makes the frozen dataclass `cls` from a mapping, checking every key and type.

    Args:
      cls: a dataclass whose fields all have defaults.
      mapping: the section of the config, e.g. `config.model`.
      where: the section's name, for messages ("model").

    Returns:
      An instance of `cls`; keys that the mapping lacks keep their defaults.

    Raises:
      UserError: an unknown key (with a suggestion) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in mapping.items():
        if key not in fields:
            raise UserError(
                f"{where}.{key} is not a key of {where}{suggest(key, fields)}; "
                f"valid keys: {', '.join(fields)}"
            )
        values[key] = coerce(value, hints[key], f"{where}.{key}")
    return cls(**values)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the annotated type `hint`, or raises UserError naming both types.

    An int is taken where a float is wanted, and a list where a tuple is; nothing else is bent.
    """
    if _matches(value, hint):
        if hint is float:
            return float(value)
        return tuple(value) if isinstance(value, list) else value
    wanted = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
    raise UserError(
        f"{where} must be {wanted}, but {value!r} is {type(value).__name__}; "
        f"give it as --config.{where}=<{wanted}>"
    )


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, arg) for arg in args)
    if hint is None or hint is type(None):
        return value is None
    if origin is tuple or hint is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        return not args or all(_matches(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
