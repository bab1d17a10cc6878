"""The text of an answer that may call tools, without what may become a call: that is only known when it has ended.

A stream shows text as soon as it can be nothing else. What begins like a call is held back; at the end the SDK has
taken the calls out, and what it leaves as text is shown.
"""

from __future__ import annotations

from edgepack.text.tool_formats import format_of

_ALONE = ("{", "[", "`")
"""How an answer begins that may be nothing but calls, bare or in a fence of code."""


class Held:
    """What is shown of one answer, by a template whose calls begin with a mark."""

    def __init__(self, template_source: str) -> None:
        self._mark = format_of(template_source).opening
        self._text = ""
        self._shown = 0  # characters of it

    def push(self, text: str) -> str:
        """Return what may be shown now that this text was added."""
        self._text += text
        return self._show(self._certain())

    def finish(self, text: str) -> str:
        """Return what is left of an answer whose text this is in the end."""
        shown = self._text[: self._shown]
        return text[len(shown) :] if text.startswith(shown) else ""

    def _certain(self) -> int:
        """Return how many characters can be no part of a call."""
        begun = self._text.lstrip()
        if not begun or begun.startswith(_ALONE):
            return 0
        found = self._text.find(self._mark, max(0, self._shown - len(self._mark)))
        if found >= 0:
            return found
        most = min(len(self._mark) - 1, len(self._text))
        part = next((size for size in range(most, 0, -1) if self._text.endswith(self._mark[:size])), 0)
        return len(self._text) - part

    def _show(self, end: int) -> str:
        new = self._text[self._shown : end]
        self._shown = max(self._shown, end)
        return new
