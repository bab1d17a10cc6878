"""How a command that failed tells it: a sentence, the next step, and an exit code.

| code | meaning |
|---|---|
| 0 | it is done |
| 1 | it could not be done, or the answer is no: a bundle that differs, a model that does not fit |
| 2 | the command line makes no sense |
| 130 | it was interrupted, by Ctrl-C, SIGTERM or a closed terminal |
| 141 | whoever read its output left, as ``| head`` does |
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from edgepack.cli.spelling import spelled
from edgepack.errors import BundleNotFoundError, EdgepackError, UsageError, visible, without_secrets

INTERRUPTED, LEFT = 130, 141
"""128 and the number of SIGINT, and of SIGPIPE, as shells tell what ended a command."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, told without secrets and without what a terminal would obey. ``type`` is the error's class."""

    type: str
    message: str
    hint: str | None
    exit_code: int

    def lines(self, colored: bool, columns: int | None = None) -> str:
        """Return it as standard error gets it; nothing of what came from outside and needs no word.

        A terminal of so many ``columns`` gets lines that end between words, which it would cut itself.
        """
        if self.exit_code in (INTERRUPTED, LEFT):
            return ""
        red, bold, plain = ("\033[31m", "\033[1m", "\033[0m") if colored else ("", "", "")
        told = _broken(f"error: {self.message}", columns).replace("error:", f"{bold}{red}error:{plain}", 1)
        hint = _broken(f"hint: {self.hint}", columns).replace("hint:", f"{bold}hint:{plain}", 1) if self.hint else None
        return f"{told}\n{hint}\n" if hint else f"{told}\n"


def _broken(text: str, columns: int | None) -> str:
    if columns is None:
        return text
    return "\n".join(wrap(text, columns, break_long_words=False, break_on_hyphens=False))


def fault_of(error: BaseException) -> Fault:
    """Return what an error means for the user of a command line."""
    message, hint, code = _told(error)
    name = UsageError.__name__ if hasattr(error, "format_message") else type(error).__name__
    return Fault(name, _safe(spelled(message)), None if hint is None else _safe(spelled(hint)), code)


def _told(error: BaseException) -> tuple[str, str | None, int]:
    if isinstance(error, KeyboardInterrupt):
        return "It was interrupted.", None, INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return "Nobody reads the output any more.", None, LEFT
    if isinstance(error, BundleNotFoundError):
        from edgepack.cli import suggest

        meant = None if error.filename is None else suggest.bundle(str(error.filename))
        return error.message, meant or error.hint, 1
    if isinstance(error, EdgepackError):
        return error.message, error.hint, 2 if isinstance(error, UsageError) else 1
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        return f"The system refused: {error.strerror or error}{name}.", None, 1
    if isinstance(error, MemoryError):
        return "The memory ran out.", "Ask for a smaller --context or --variant.", 1
    if (say := getattr(error, "format_message", None)) is not None:  # the parser of the command line
        context: Any = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "edgepack"
        if context is not None and getattr(error, "possibilities", None):  # an old name works, and is not offered
            hidden = {name for each in context.command.params if getattr(each, "hidden", False) for name in each.opts}
            vars(error)["possibilities"] = [name for name in vars(error)["possibilities"] if name not in hidden]
        message = str(say()).rstrip()
        return message if message.endswith("?") else message.rstrip(".") + ".", f"See: {path} --help", 2
    hint = "This is a fault of edgepack; EDGEPACK_DEBUG=1 shows where."
    return f"internal error: {type(error).__name__}: {error}", hint, 1


def _safe(text: str) -> str:
    return visible(without_secrets(text))
