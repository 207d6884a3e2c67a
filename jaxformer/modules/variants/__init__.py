"""What `model.attention` may name: a way to attend, as one string, "sliding_window(left=127)".

Each variant is a small Flax module around one function of `ops.attention`: its fields are the
arguments in the parentheses, and it owns what the variant learns besides the projections. A
researcher's own function, "mine.py:attend(width=3)", is called as `ops.attention` is.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from typing import Any

from jaxformer.errors import UserError, suggest
from jaxformer.modules.variants import decay, differential, latent, linear, sparse
from jaxformer.modules.variants.base import _OF_FLAX, Attended, Choice, Given, Variant
from jaxformer.modules.variants.own import Own, load_function

__all__ = [
    "VARIANTS",
    "Attended",
    "Choice",
    "Given",
    "Variant",
    "bound_to_places",
    "check",
    "parse",
    "rotary_width",
]

VARIANTS: dict[str, type[Variant]] = {
    "bigbird": sparse.BigBird,
    "block_local": sparse.BlockLocal,
    "differential": differential.Differential,
    "gated_linear": decay.GatedLinear,
    "latent": latent.Latent,
    "linear": decay.LinearAttention,
    "linformer": linear.Linformer,
    "longformer": sparse.Longformer,
    "nystromformer": linear.Nystromformer,
    "performer": linear.Performer,
    "retention": decay.Retention,
    "sliding_window": sparse.SlidingWindow,
}


@functools.lru_cache(maxsize=256)  # and Python 3.11's ast is not safe beside other threads
def parse(text: str) -> Choice | None:
    """Returns the variant that `model.attention` names; None for "softmax".

    Raises:
      UserError: no such variant or argument, or a value of the wrong type.
    """
    if text == "softmax":
        return None
    where = f"model.attention={text}"
    name, parenthesis, _ = text.partition("(")
    path, colon, function = name.rpartition(":")
    try:
        call = ast.parse(f"f({text.partition('(')[2]}" if parenthesis else "f()", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise UserError(
            f"{where} is not a name with arguments by keyword; write it as "
            '"sliding_window(left=127)"'
        ) from None
    if colon:
        load_function(path, function)
        of_own = {"path": path, "function": function, "arguments": tuple(given.items())}
        return Choice(Own, of_own)
    if name == "softmax":
        raise UserError(f"{where}: softmax has no arguments; write model.attention=softmax")
    known = ("softmax", *VARIANTS)
    if name not in VARIANTS:
        raise UserError(
            f"{where}: {name!r} is not one of {', '.join(known)}{suggest(name, known)}; or give a "
            'function of your own, "file.py:function"'
        )
    kind = VARIANTS[name]
    fields: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(kind) if f.name not in _OF_FLAX
    }
    for key, value in given.items():
        if key not in fields:
            raise UserError(
                f"{where}: {key!r} is not an argument of {name}{suggest(key, fields)}; "
                f"valid: {', '.join(fields) or 'none'}"
            )
        if not _is_like(value, fields[key]):
            raise UserError(
                f"{where}: {name}'s {key} must be {type(fields[key]).__name__}, but {value!r} is "
                f"{type(value).__name__}"
            )
        given[key] = type(fields[key])(value)
        if wanted := _limit(given[key], kind.VALID.get(key, 1)):
            raise UserError(f"{where}: {name}'s {key} must be {wanted}, not {value!r}")
    return Choice(kind, given)


def _limit(value: Any, valid: int | tuple[str, ...]) -> str:
    """Returns what a value must be, where it is not; or ""."""
    if isinstance(valid, tuple):
        return "" if value in valid else f"one of {', '.join(valid)}"
    if isinstance(value, float):
        return "" if value > 0.0 else "above 0"
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return f"{valid} or more" if is_number and value < valid else ""


def bound_to_places(config: Any) -> bool:
    """Whether a model's tokens see what depends on their place in the row; see Variant."""
    choice = parse(config.attention) if isinstance(getattr(config, "window", None), int) else None
    return choice is not None and choice.make().bound_to_places()


def rotary_width(config: Any) -> int:
    """Returns how many channels of a head RoPE turns in a model."""
    choice = parse(config.attention)
    return config.per_head if choice is None else choice.make().rotary_width(config)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of the default's type; an int is taken for a float, a bool for none."""
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, (int, float))
    return type(value) is type(default)


def check(config: Any, *, causal: bool) -> None:
    """Raises UserError where a model's config asks of its attention what that cannot do."""
    choice = parse(config.attention)
    if choice is None:
        return
    variant = choice.kind
    where = f"model.attention={config.attention}"
    if causal and not variant.CAUSAL:
        raise UserError(f"{where} cannot be causal; use it in model.family=encoder")
    if not causal and not variant.BIDIRECTIONAL:
        raise UserError(f"{where} is causal by its definition; use it in model.family=decoder")
    if complaint := choice.make().complaint(config):
        raise UserError(f"{where} {complaint}")
    asked = {
        "bias": (config.positions in ("alibi", "t5"), f"model.positions={config.positions}"),
        "soft_cap": (config.attention_soft_cap, "model.attention_soft_cap"),
        "dropout": (config.attention_dropout, "model.attention_dropout"),
    }
    for name, (wanted, key) in asked.items():
        if wanted and name not in variant.HONOURS:
            mend = "another, such as rope" if name == "bias" else "0"
            raise UserError(f"{where} cannot honour {key}; set it to {mend}")
    if config.window:
        raise UserError(
            f"{where}: model.window belongs to softmax; set it to 0, or give the variant its own"
        )
