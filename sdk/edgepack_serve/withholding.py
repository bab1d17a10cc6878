"""What of an answer may be a tool call is not streamed as text: it comes at the end, as a call or as the text that it
is. What can be no call goes on at once."""

from __future__ import annotations

from dataclasses import replace

from edgepack import Chunk, Model, Result
from edgepack.prefix import overlap
from edgepack.text.thoughts import marks_of
from edgepack.text.tool_formats import format_of


class Withholding:
    """Divides the pieces of one answer, to a question with tools."""

    def __init__(self, model: Model) -> None:
        source, chat = model.template.for_tools.source, model.manifest.chat
        form = format_of(source)
        self._opening = form.opening
        marks = "\0".join((form.opening, *form.inside, form.closing))
        self._marks = frozenset(id for id in model.tokenizer.special_ids if model.tokenizer.token(id) in marks)
        self._sent, self._pending, self._holds = "", "", False
        # Where thoughts are not told apart from answers, a call may stand alone behind one.
        apart = chat is not None and chat.thinking is not None
        self._begins = ("{", "[", "```", *(() if apart else (opening for opening, _ in marks_of(source))))

    def push(self, chunk: Chunk) -> Chunk:
        """Return a piece with the text that goes on."""
        self._pending += chunk.text
        if not self._marks.isdisjoint(chunk.token_ids):
            self._holds = True
        text = "" if self._holds else self._free()
        self._sent, self._pending = self._sent + text, self._pending[len(text) :]
        return replace(chunk, text=text)

    def rest(self, result: Result) -> str:
        """Return the text that was held and is no call."""
        sent = self._sent.strip() if result.tool_calls else self._sent
        return result.text[len(sent) :] if result.text.startswith(sent) else ""

    def _free(self) -> str:
        """Return what of the text that waits is no part of a call."""
        text = self._pending
        if not self._sent:
            begun = text.lstrip()
            self._holds = begun.startswith(self._begins)
            if self._holds or any(each.startswith(begun) for each in self._begins):
                return ""
        if (at := text.find(self._opening)) >= 0:
            self._holds = True
            return text[:at]
        return text[: len(text) - overlap(text, self._opening)]
