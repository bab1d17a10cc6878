"""The chat of ``edgepack run`` in a terminal. Answers go to standard output, all else to standard error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from edgepack.cli import figures, showing, textfile
from edgepack.cli.screen import err, say, styled
from edgepack.cli.talk.chat import Chat
from edgepack.cli.talk.commands import completed, obey
from edgepack.cli.talk.lines import Completing, Lines, PlainLines
from edgepack.cli.talk.presses import Pressed, as_found, presses
from edgepack.cli.talk.typed import parsed
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from rich.console import Console

    from edgepack.decoding.results import Result
    from edgepack.decoding.stream import Stream
    from edgepack.model import Model

_MISSING = "pip install 'edgepack[chat]' adds a history, completion and editing of several lines."


def converse(
    model: Model,
    options: dict[str, Any],
    *,
    system: str | None = None,
    raw: bool = False,
    stats: bool = False,
    markdown: bool = False,
) -> None:
    """Read texts and commands until one ends the chat, with answers of these options.

    ``stats`` has a line of figures after each answer, ``markdown`` renders it where standard output is a terminal.
    Raises ``UsageError`` for options that no answer could take; later errors are said, and the chat goes on.
    """
    notes = err()

    def shown(stream: Stream) -> Result:
        result = showing.show(stream, "\n", markdown, calls="tools" in chat.options)
        if chat.stats:
            say(notes, styled("dim", figures.line(result)))
        if why := showing.unanswered(result, "/set thinking_tokens or a larger /set max_tokens", "/think off"):
            say(notes, styled("dim", why))
        sys.stdout.write("\n")
        sys.stdout.flush()
        return result

    chat = Chat(model, shown, options, system, raw)
    chat.stats = stats
    lines, better = _opened(lambda line: completed(chat, line))
    kind = " Each text is continued by itself." if chat.raw else ""
    about = f"{model.manifest.name}, {model.variant.id}, context {model.context}.{kind}"
    say(notes, styled("dim", f"{about} Ctrl-C stops an answer, /help lists the commands, Ctrl-D leaves."))
    if better:
        say(notes, styled("dim", f"Lines are read plainly: {better}"))
    with as_found(), presses():
        _loop(chat, lines, notes)


def _opened(completing: Completing) -> tuple[Lines, str]:
    """Return what reads the lines of this terminal, and the command that would get a better one, "" for none."""
    screen = next((each for each in (sys.stdout, sys.stderr) if each.isatty()), None)
    if screen is None or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return PlainLines(), ""
    try:
        from edgepack.cli.talk.editor import editor
    except ModuleNotFoundError as error:
        if error.name not in ("prompt_toolkit", "wcwidth"):
            raise
        return PlainLines(), _MISSING
    return editor(completing, screen), ""


def _loop(chat: Chat, lines: Lines, notes: Console) -> None:
    pressed = False
    while True:
        try:
            text = textfile.argument(lines.read())
            pressed = False
            _turn(chat, text, notes)
        except EOFError:
            return
        except Pressed:
            if pressed:
                return
            pressed = True
            say(notes, styled("dim", "Ctrl-C once more leaves."))
        except EdgepackError as error:
            say(notes, styled("red", f"error: {error}\n"))


def _turn(chat: Chat, text: str, notes: Console) -> None:
    name, said = parsed(text)
    if name:
        if shown := obey(chat, name, said):
            notes.print(shown)
    elif said:
        chat.say(said)
