"""A researcher's own way to attend: a function in a file, with the signature of ops.attention."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxformer.errors import UserError, suggest
from jaxformer.modules.variants.base import Attended, Given, Variant, attended


class Own(Variant):
    """A researcher's function; it gets those of the usual keyword arguments that it names."""

    path: str = ""
    function: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        function = load_function(self.path, self.function)
        takes = inspect.signature(function).parameters
        rest = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        usual = given.options("soft_cap", "dropout_rate", "key", "backend", "offset")
        named = {name: x for name, x in usual.items() if rest or name in takes}
        if given.return_weights and "return_weights" not in named:
            raise UserError(
                f"model.attention={self.path}:{self.function} has no return_weights, so its maps "
                "cannot be drawn; add it, or use another attention"
            )
        return attended(function(q_BTNH, k_BSKH, v_BSKH, **named, **dict(self.arguments)), given)


@functools.lru_cache(maxsize=32)
def load_function(path: str, function: str) -> Any:
    """Returns a function of a Python file.

    Raises:
      UserError: no such file, or no such function in it.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"model.attention={path}:{function}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"attention_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"model.attention={path}:{function}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        names = [n for n, x in vars(module).items() if inspect.isfunction(x)]
        raise UserError(
            f"model.attention={path}:{function}: {path} has no function {function!r}"
            f"{suggest(function, names)}; it has {', '.join(names) or 'none'}"
        )
    return getattr(module, function)
