"""What a shell asks while a command line is typed: which words may come next. Then no command runs."""

from __future__ import annotations

import os
import re
from glob import escape, glob
from typing import Any

ASKED = "_EDGEPACK_COMPLETE"
"""Set by the shell's script."""

_TYPED = "_TYPER_COMPLETE_ARGS"
_QUOTES = str.maketrans("'\"", "\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}")


def prepare() -> None:
    """Have the answer made for the shell that asks."""
    os.environ["COLUMNS"] = "10000"  # a shell reads a line for each word, and typer would fold it
    if _is_zsh():
        os.environ[_TYPED] = _as_zsh_matches(os.environ.get(_TYPED, ""))


def words() -> list[str]:
    """Return the words before the cursor, as the shells' scripts pass them: bash by the one name, others by the other.

    A word that is being typed names no command yet.
    """
    found = (os.environ.get("COMP_WORDS") or os.environ.get(_TYPED) or "").split()
    return found[1:] if len(found) > 2 else []


def spoken(command: Any) -> Any:
    """Return a command whose sentences the shell shows whole: zsh drops the quotes of ASCII, and in the C locale, which
    Python puts another in the place of, it stops at those that are not."""
    if _is_zsh() and "utf" in (os.environ.get("LC_ALL") or os.environ.get("LANG", "")).lower():
        for each in (command, *command.params):
            if getattr(each, "help", None):
                each.help = each.help.translate(_QUOTES)
        for inner in getattr(command, "commands", {}).values():
            spoken(inner)
    return command


def _is_zsh() -> bool:
    return os.environ.get(ASKED) == "complete_zsh"


def _as_zsh_matches(typed: str) -> str:
    """Return a line whose last word ends before a hyphen, from which on zsh chooses itself among what is offered.

    It puts what all words share: of smollm2-135m and smollm3-3b it makes "smollm-", with which none of them begins.
    A word with which files begin stays, for zsh to complete them where nothing else is offered.
    """
    begun, last = re.match(r"(.*\s|)(\S*)$", typed, re.DOTALL).groups()  # type: ignore[union-attr]
    found = re.match(r"(-*[^-]+)-", last)
    return begun + found[1] if found and not glob(escape(last) + "*") else typed
