"""The commands of a chat: what each does, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from edgepack.cli import figures, screen
from edgepack.cli.talk import saved, settings
from edgepack.cli.talk.chat import Chat
from edgepack.device.memory import human
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_THINKING = {"on": True, "off": False, "auto": None}
_NONE = '""'


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what is typed after it, a sentence for /help, what it does with that, and words to complete.

    What it returns is shown. One that takes nothing is refused anything.
    """

    takes: str
    does: str
    run: Callable[[Chat, str], RenderableType]
    words: Callable[[Chat], Iterable[str]] = lambda chat: ()


def obey(chat: Chat, name: str, rest: str) -> RenderableType:
    """Do what a command says and return what is to be shown. Raises ``EOFError`` for the one that ends the chat."""
    command = COMMANDS.get(name)
    if command is None:
        close = get_close_matches(name, COMMANDS, n=1)
        nearest = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"There is no command {name}.",
            hint=f'{nearest}/help lists them; a text that begins with a slash goes between two """.',
        )
    if rest and not command.takes:
        raise UsageError(f"{name} takes nothing after it.", hint=f"Type {name} alone.")
    return command.run(chat, rest)


def completed(chat: Chat, line: str) -> list[str]:
    """Return what the last word of a line may become: a command, or a word that the command before it takes."""
    name, *rest = line.split(" ")
    if not rest:
        return [command for command in COMMANDS if name.startswith("/") and command.startswith(name)]
    command = COMMANDS.get(name)
    words = command.words(chat) if command and len(rest) == 1 else ()
    return [word for word in words if word.startswith(rest[0])]


def _help(chat: Chat, rest: str) -> RenderableType:
    lines = [(f"{name} {each.takes}".strip(), each.does) for name, each in COMMANDS.items()]
    return screen.facts(
        [
            *lines,
            ("Ctrl-C", "stop an answer, clear a line, leave at the second press"),
            ("Ctrl-D", "leave"),
            ('"""', 'begin a text of several lines, which ends with """'),
        ]
    )


def _system(chat: Chat, rest: str) -> RenderableType:
    if not rest:
        return "There is no system prompt." if chat.system is None else chat.system
    chat.begin(None if rest == _NONE else rest)
    return "The conversation begins anew" + (" without a system prompt." if rest == _NONE else " with it.")


def _set(chat: Chat, rest: str) -> RenderableType:
    name, *value = rest.split(None, 1) or [""]
    if name:
        settings.check(name, chat.raw)
    if value:
        chat.set(name, settings.read(name, value[0]))
    lines = settings.shown(chat.options, chat.model.manifest.generation, chat.raw)
    return screen.facts([line for line in lines if name in ("", line[0])])


def _save(chat: Chat, rest: str) -> RenderableType:
    place = chat.save(rest)
    return f"{_turns(chat.turns)} saved in {place} ({human(place.stat().st_size)})."


def _load(chat: Chat, rest: str) -> RenderableType:
    if not rest:
        names = saved.names()
        return f"Saved: {', '.join(names)}." if names else "None is saved yet under a name."
    chat.load(rest)
    return f"{_turns(chat.turns)} loaded."


def _stats(chat: Chat, rest: str) -> RenderableType:
    if rest:
        chat.stats = bool(_one_of("/stats", rest, {"on": True, "off": False}))
        return f"Each answer is followed by {'its figures' if chat.stats else 'no figures'}."
    if chat.result is None:
        return "There is no answer yet."
    return screen.facts(figures.rows(chat.result, chat.model.context))


def _undo(chat: Chat, rest: str) -> RenderableType:
    if rest and not rest.isdecimal():
        raise UsageError(f"/undo {rest} is no number of turns.", hint="Type /undo, or /undo 2.")
    chat.undo(int(rest or 1))
    return f"{_turns(int(rest or 1))} forgotten, {chat.turns} left."


def _redo(chat: Chat, rest: str) -> RenderableType:
    chat.redo()
    sampling = None if chat.result is None else chat.result.sampling
    greedy = sampling is not None and sampling.temperature == 0
    return "At temperature 0 every seed gives the same answer; /set temperature 0.7 would not." if greedy else ""


def _think(chat: Chat, rest: str) -> RenderableType:
    if rest:
        wanted = _one_of("/think", rest, _THINKING)
        settings.check("thinking", chat.raw)
        chat.set("thinking", wanted)
    now = chat.options.get("thinking")
    return f"Thinking is {next(word for word, value in _THINKING.items() if value is now)}."


def _clear(chat: Chat, rest: str) -> RenderableType:
    turns = chat.turns
    chat.clear()
    return f"{_turns(turns)} forgotten."


def _bye(chat: Chat, rest: str) -> RenderableType:
    raise EOFError


def _one_of(command: str, word: str, known: dict[str, bool | None]) -> bool | None:
    if word not in known:
        raise UsageError(f"{command} {word} means nothing.", hint=f"Choose one of: {', '.join(known)}.")
    return known[word]


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"


COMMANDS = {
    "/help": Command("", "list the commands", _help),
    "/system": Command("[TEXT]", f"begin anew with this system prompt, or none ({_NONE}); alone: show it", _system),
    "/set": Command(
        "[NAME [VALUE]]",
        f"set an option of the answers, or its {settings.DEFAULT}; alone: show them",
        _set,
        lambda chat: settings.names(chat.raw),
    ),
    "/save": Command("[NAME|PATH]", "save the conversation", _save, lambda chat: saved.names()),
    "/load": Command(
        "[NAME|PATH]", "go on with one that was saved; alone: list the names", _load, lambda chat: saved.names()
    ),
    "/stats": Command(
        "[on|off]",
        "show the figures of the last answer, or a line of them after each",
        _stats,
        lambda chat: ("on", "off"),
    ),
    "/undo": Command("[TURNS]", "forget the last turn", _undo),
    "/redo": Command("", "ask the last turn again, with another seed", _redo),
    "/think": Command("on|off|auto", "have the model think before it answers", _think, lambda chat: _THINKING),
    "/clear": Command("", "forget all turns; the system prompt stays", _clear),
    "/bye": Command("", "leave", _bye),
}
