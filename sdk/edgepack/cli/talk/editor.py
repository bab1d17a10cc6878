"""The editor of lines, by prompt_toolkit: history, completion, a text of several lines in quotes or pasted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.shortcuts import CompleteStyle

from edgepack.bundle.writing import write_atomically
from edgepack.cli.talk.lines import MORE, PROMPT, Completing
from edgepack.cli.talk.presses import Pressed
from edgepack.cli.talk.typed import is_open
from edgepack.device.state import state_folder

_LARGEST = 1 << 20  # bytes of a history, of which the newest half stays


class Editor:
    """Reads lines that are edited. Ctrl-C clears a line, and in an empty one it is ``Pressed``; Ctrl-D is the end."""

    def __init__(
        self, completing: Completing, history: History, input: Input | None = None, output: Output | None = None
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=Condition(lambda: is_open(get_app().current_buffer.text)),
            prompt_continuation=MORE,
            completer=_Words(completing),
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_suspend=True,
            search_ignore_case=True,
            history=history,
            key_bindings=_bindings(),
            interrupt_exception=Pressed,
            input=input,
            output=output,
        )

    def read(self) -> str:
        """Read as ``Lines`` says."""
        return self._session.prompt()


def editor(completing: Completing, screen: TextIO) -> Editor:
    """Return an editor with the history of the state folder, in the terminal that is standard input and ``screen``."""
    return Editor(completing, kept_history(), output=create_output(screen))


def kept_history() -> History:
    """Return the history in the state folder, readable by its user alone; one that is not kept where that fails."""
    try:
        place = state_folder() / "history"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        place.chmod(0o600)
        _shorten(place)
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return _Kept(place)


class _Kept(FileHistory):
    """A history in a file. What cannot be written, on a disk that is full, is forgotten."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string.encode(errors="replace").decode())


class _Words(Completer):
    def __init__(self, completing: Completing) -> None:
        self._completing = completing

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        line = document.text_before_cursor
        last = line.split(" ")[-1]
        for word in self._completing(line):
            yield Completion(word, start_position=-len(last))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    written = Condition(lambda: bool(get_app().current_buffer.text))

    @bindings.add("c-c", filter=written)
    @bindings.add("<sigint>", filter=written)
    def clear(event: KeyPressEvent) -> None:
        event.app.exit(result="", style="class:aborting")

    return bindings


def _shorten(place: Path) -> None:
    if place.stat().st_size > _LARGEST:
        kept = place.read_bytes()[-_LARGEST // 2 :]
        write_atomically(place, kept[max(kept.find(b"\n# "), 0) :])  # from the beginning of an entry
