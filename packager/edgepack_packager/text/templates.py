"""The chat templates of a source: the one for every conversation, and the one that it has for tools.

Sources keep them in files of their own, or by name in the JSON files that older tools put them in. As in transformers,
"default" is the chat template, "tool_use" takes its place where tools are given, and files go before what
tokenizer_config.json says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.strictjson import parse_object, read_bytes
from edgepack_packager.text.files import TEMPLATE, TOKENIZER_CONFIG, TOOL_USE, parsed

_JSON = "chat_template.json"  # of processors
_HINT = "Remove it, or build without it: --no-chat"
_DEFAULT, _TOOL_USE = "default", "tool_use"


@dataclass(frozen=True, slots=True)
class Templates:
    """The sources of the templates that a bundle carries, and the names of those that it leaves out."""

    default: str | None = None
    tool_use: str | None = None
    left_out: tuple[str, ...] = ()


def find(folder: Path, files: Mapping[str, bytes]) -> Templates:
    """Return the templates of the source in ``folder``, whose text files are ``files``.

    Raises ``SourceError`` for a template that is no text, and for named ones without a default.
    """
    chosen: dict[str, str] = {}
    seen: set[str] = set()
    place = ""
    for where, named in _places(folder, files):
        seen.update(named)
        if not chosen:
            chosen, place = named, where
        elif _DEFAULT not in chosen and _DEFAULT in named:
            chosen = {**chosen, _DEFAULT: named[_DEFAULT]}
    if chosen and _DEFAULT not in chosen:
        raise SourceError(
            f"{place}: chat_template lists no template named 'default'.",
            hint=f"Write the one for conversations to {TEMPLATE}, or build without any: --no-chat",
        )
    left_out = seen - {_DEFAULT} - ({_TOOL_USE} & chosen.keys())
    return Templates(chosen.get(_DEFAULT), chosen.get(_TOOL_USE), tuple(sorted(left_out)))


def _places(folder: Path, files: Mapping[str, bytes]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the templates of each place that has any, by name; the first place decides."""
    named = {_DEFAULT: _decoded(folder / TEMPLATE, files[TEMPLATE])} if TEMPLATE in files else {}
    for path in sorted((folder / TOOL_USE).parent.glob("*.jinja")):
        named[path.stem] = _decoded(path, read_bytes(path))
    if named:
        yield Path(TOOL_USE).parent.name, named
    said = {TOKENIZER_CONFIG: parsed(files, TOKENIZER_CONFIG)}
    if (folder / _JSON).exists():
        said = {_JSON: parse_object(read_bytes(folder / _JSON), _JSON), **said}
    for place, config in said.items():
        if (value := config.get("chat_template")) is not None:
            yield place, _named(value, place)


def _named(value: Any, place: str) -> dict[str, str]:
    """Return templates by name from a text, from a list of names and texts, or from an object of them."""
    if isinstance(value, str):
        return {_DEFAULT: value}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("name"), item.get("template")) for item in value]
    else:
        pairs = list(value.items()) if isinstance(value, dict) else [(None, None)]
    if not all(isinstance(each, str) for pair in pairs for each in pair):
        raise SourceError(f"{place}: chat_template must be text or a list of named templates.", hint=_HINT)
    if not pairs:
        raise SourceError(f"{place}: chat_template lists no template.", hint=_HINT)
    return dict(pairs)


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not UTF-8.", hint="Fetch the file again.") from None
