"""`--config.section.key=value` from a command line, typed by the key's dataclass."""

from __future__ import annotations

import ast
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxformer.errors import UserError, suggest
from jaxformer.train.experiment import CHOICES, SECTIONS


def load(path: str | Path) -> ConfigDict:
    """Returns get_config() of an experiment file.

    Raises:
      UserError: no such file, or no get_config in it.
    """
    module = open_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path} has no get_config(); an experiment returns a ConfigDict")
    return ConfigDict(module.get_config())


def open_file(path: str | Path) -> types.ModuleType:
    """Returns an experiment file as a module.

    Raises:
      UserError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        there = f"; {path.parent} holds {', '.join(Path(p).name for p in near)}" if near else ""
        raise UserError(f"--config={path}: no such file{suggest(str(path), near)}{there}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path} is not a Python file; give an experiment such as x.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply(chosen: ConfigDict, assignments: list[str]) -> ConfigDict:
    """Returns the config with assignments such as "model.width=512" made.

    Raises:
      UserError: an unknown section or key, or a value that is not of the key's type.
    """
    result = ConfigDict(chosen.to_dict())
    with result.unlocked():
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise UserError(f"--config.{name} has no value; give --config.{name}=VALUE")
            section, dot, key = name.partition(".")
            known = ("seed", *CHOICES, *SECTIONS)
            if section not in known:
                raise UserError(
                    f"--config.{name}: {section!r} is not a section{suggest(section, known)}; "
                    f"valid: {', '.join(known)}"
                )
            if section == "seed":
                result.seed = parse(text, int, name)
                continue
            hints = _hints(result, section)
            if not dot or key not in hints:
                raise UserError(
                    f"--config.{name}: {key!r} is not a key of {section}{suggest(key, hints)}; "
                    f"valid: {', '.join(hints)}"
                )
            if section not in result:
                result[section] = ConfigDict()
            with result[section].ignore_type():
                result[section][key] = parse(text, hints[key], name)
    return result


def _hints(chosen: ConfigDict, section: str) -> dict[str, Any]:
    if section in SECTIONS:
        return typing.get_type_hints(SECTIONS[section])
    key, table = CHOICES[section]
    pick = chosen.get(section, {}).get(key, next(iter(table)))
    config = table[pick].Config if pick in table else next(iter(table.values())).Config
    return {key: str, **typing.get_type_hints(config)}


def parse(text: str, hint: Any, name: str) -> Any:
    """Returns the value that `text` spells for a key of type `hint`.

    Raises:
      UserError: it spells none.
    """
    if hint is str:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if typing.get_origin(hint) is tuple and not text.startswith(("(", "[")):
        return tuple(part for part in text.split(",") if part)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        wanted = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
        raise UserError(f"--config.{name}={text}: {name} must be {wanted}") from None
    return tuple(value) if isinstance(value, list) else value
