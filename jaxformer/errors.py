"""The one exception that a user may cause, and the words that help them out of it."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in the user's input, told in one clear line.

    The line names the key, file or id, says what is valid, and suggests the fix. The command line
    prints it without a traceback (unless `--debug`) and exits with a code other than 0.
    """


@contextlib.contextmanager
def reading_text(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises UserError, with the reason, where a file cannot be read or is not UTF-8 text."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}") from None


def suggest(name: str, valid: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the valid name closest to `name`, or ""."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(name: str, valid: Iterable[str], where: str) -> None:
    """Raises UserError, with the valid names and a suggestion, unless `name` is one of them."""
    valid = list(valid)
    if name not in valid:
        raise UserError(
            f"{where}: {name!r} is not one of {', '.join(valid)}{suggest(str(name), valid)}"
        )
