"""The command that shows how runs fare on longer texts than they were trained on."""

from __future__ import annotations

from typing import Any

from jaxformer.cli.flags import parse, restore
from jaxformer.errors import UserError


def extrapolate(words: list[str]) -> None:
    """Draws the perplexity of one or several runs over the length that they read at once."""
    flags, assignments = parse(
        words, "--lengths", "--tokens", "--out", "--checkpoint", "--require_platform",
        places=len(words),
    )  # fmt: skip
    workdirs = flags["places"]
    if not workdirs:
        raise UserError(
            "extrapolate needs a run; e.g. jaxformer extrapolate runs/rope runs/alibi "
            "--lengths 64,128,256"
        )
    lengths = whole_numbers("--lengths", flags["lengths"] or "64,128,256,512,1024")
    tokens = whole_numbers("--tokens", flags["tokens"] or "65536")
    if len(tokens) > 1:
        raise UserError(f"--tokens={flags['tokens']}: give one whole number")
    from jaxformer.visualize import perplexity_over_length

    found: list[Any] = []
    for workdir in workdirs:
        asked = {**flags, "workdir": workdir, "config": None}
        chosen, params, folder = restore(asked, assignments, "extrapolate")
        from jaxformer.train.extrapolate import curves

        with chosen.unlocked():
            chosen.data.tokenizer = str(folder)  # the run's own
        print(f"{workdir}: nats per token of its validation text")
        found += curves(workdir, chosen, params, lengths, tokens=tokens[0], say=print)
    out = flags["out"] or "extrapolation.png"
    try:
        perplexity_over_length(found).savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--out={out} cannot be written: {error}") from None
    print(f"wrote {out}")


def whole_numbers(flag: str, text: str) -> list[int]:
    """Returns the whole numbers, with commas between them, of a flag, in their order.

    Raises:
      UserError: something else stands there.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{flag}={text}: give whole numbers from 1 on, such as 64,128,256")
    return sorted({int(part) for part in parts})


def places(flag: str, text: str | None) -> tuple[int, ...]:
    """Returns the numbers from 0 on, with commas between them, of a flag; () where it is not given.

    Raises:
      UserError: something else stands there.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{flag}={text}: give whole numbers from 0 on, such as 0,3")
    return tuple(int(part) for part in parts)
