"""Stop strings in a stream of text: nothing of a stop string gets out, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.prefix import overlap


class StopMatcher:
    """Cuts a text before a stop string, however the text is split into pieces.

    The stop string that is complete first ends the text; where several end at the same character, the longest does.
    ``matched`` is that string, or None. Text that may be the beginning of a stop string is held back until the next
    pieces, or ``finish``, decide.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string is empty")
        self.matched: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that is now safe to show. After a match, nothing is."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        # A stop's first occurrence is also the one that ends first, so one search per stop is enough.
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        safe = len(text) - self._open(text)
        self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        """Return the text that was held back: it turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        return max((overlap(text, stop) for stop in self._stops), default=0)
