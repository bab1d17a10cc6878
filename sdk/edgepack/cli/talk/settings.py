"""The options of a chat's answers by their names: every one that the SDK takes, and what it says of a wrong one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgepack.bundle.manifest import Generation
from edgepack.cli import textfile
from edgepack.decoding.options import ChatOptions, GenerationOptions
from edgepack.errors import UsageError, check_options

DEFAULT = "default"
_UNSEEN = ("logprobs", "n_best")  # what a chat would not show
_WIDEST = 48


def names(raw: bool) -> list[str]:
    """Return the options of a text, or with them those of an answer through the chat template."""
    known = get_type_hints(GenerationOptions if raw else ChatOptions)
    return [name for name in known if name not in (*_UNSEEN, "continue_final")]


def check(name: str, raw: bool) -> None:
    """Raise ``UsageError`` for a name that is none of them."""
    if name in _UNSEEN:
        raise UsageError(f"A chat does not show {name}.", hint='Ask once: edgepack run BUNDLE "..." --json')
    check_options("Generation", [name], names(raw))


def read(name: str, text: str) -> object:
    """Return the value that was typed for an option, None for "default".

    A schema is JSON in braces or the name of a file, a grammar and tools are in a file. Of the others, what is only
    ever a text stands as it is; elsewhere a value that is JSON is that value, and any other a text.
    Raises ``UsageError`` for a file that cannot be read; whether an answer takes the value, it says itself.
    """
    if text == DEFAULT:
        return None
    if name == "json_schema":
        return textfile.schema(text)
    if name == "tools":
        return textfile.tools(Path(text).expanduser())
    if name == "grammar":
        return textfile.read(Path(text).expanduser())
    return text if _is_text(get_type_hints(ChatOptions)[name]) else _json(text)


def shown(options: Mapping[str, object], defaults: Generation, raw: bool) -> list[tuple[str, str]]:
    """Return the options and what they are now, each in a line."""
    return [(name, _shown(options.get(name), getattr(defaults, name, None))) for name in names(raw)]


def _shown(value: object, default: object) -> str:
    if value is None:
        return "-" if default is None else f"{default} (the bundle's)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _is_text(kind: object) -> bool:
    return all(each in (str, type(None)) or get_origin(each) is Literal for each in get_args(kind))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
