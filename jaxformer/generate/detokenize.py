"""Ids to text while they come: text that only grows, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Detokenizer:
    """Turns a growing list of ids into text that only grows, cut at the first stop string.

    Characters whose bytes are not all there yet are held back, and so is a text's end that may turn
    out to be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self.decode, self.stop = decode, tuple(stop)
        self.text = ""  # what was given out
        self.ids: list[int] = []  # all ids before the stop
        self.stopped = False

    def update(self, ids: list[int], *, last: bool = False) -> str:
        """Takes all ids so far and returns the new text; `last` gives out what is held back."""
        if self.stopped:
            return ""
        self.ids, text = list(ids), self.decode(list(ids))
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            text, self.stopped, last = text[: min(found)], True, True
            while self.ids and len(self.decode(self.ids)) > len(text):
                self.ids.pop()
        if not last:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - self._beginning_of_stop(text)]
        new = text[len(self.text) :]
        self.text += new
        return new

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins, but does not complete, a stop string."""
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        ends = (text[-size:] for size in range(min(longest, len(text)), 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self.stop)), 0)
