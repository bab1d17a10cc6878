"""The messages that an application hands in, checked, and the form in which a chat template reads them.

A content is a text, or a list of text parts as clients of OpenAI's interface send it; inside edgepack it is always one
text, so that what is proven of one part holds for several. Other servers join parts by line breaks too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from edgepack.errors import UsageError

_PARTS = 'It must be a string, or a list of text parts: {"type": "text", "text": "..."}.'


def checked(messages: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
    """Return a copy in JSON's own types, each with a role and a text as its content.

    A message with ``tool_calls`` may have no content. Raises ``UsageError`` that names the place for anything else,
    for a part that is no text too.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "messages is not a list of at least one message.", hint='Pass [{"role": "user", "content": "..."}].'
        )
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def in_parts(messages: Sequence[Mapping[str, Any]], roles: Collection[str]) -> list[dict[str, Any]]:
    """Return checked messages with the contents of these roles as lists of one text part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in roles and isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


def plain(value: object, place: str) -> Any:
    """Return a copy in JSON's own types, so that a template meets no method of an application's object.

    Raises ``UsageError`` that names the place of what JSON does not have.
    """
    try:
        return _plain(value, place)
    except RecursionError:
        raise UsageError(f"{place} has too many levels.", hint="It must be a value that JSON has.") from None


def whole(text: str, place: str) -> str:
    """Return a text as Python's own type. Raises ``UsageError`` that names the place of one that has no UTF-8 form."""
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place} has half a surrogate pair at index {error.start}.", hint="Decode it from valid UTF-8."
        ) from None
    return text


def _plain(value: object, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return whole(value, place)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{place}.{key}") for key, item in _named(value, place)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise UsageError(f"{place} is of type {type(value).__name__}.", hint="It must be a value that JSON has.")


def _message(message: object, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{place} is of type {type(message).__name__}.", hint="It must be a mapping.")
    if "role" not in message:
        raise UsageError(f"{place}.role is missing.")
    if not isinstance(message["role"], str):
        raise UsageError(f"{place}.role is of type {type(message['role']).__name__}.", hint="It must be a string.")
    silent = message.get("content") is None and message.get("tool_calls") is not None
    if "content" not in message and not silent:
        raise UsageError(f"{place}.content is missing.")
    # In the order of the fields, which a template may print whole.
    return {
        key: _text(value, f"{place}.content") if key == "content" and not silent else plain(value, f"{place}.{key}")
        for key, value in _named(message, place)
    }


def _named(value: Mapping[Any, object], place: str) -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        if not isinstance(key, str):
            raise UsageError(f"{place} has a key of type {type(key).__name__}.", hint="Keys must be strings.")
        yield whole(key, f"A key of {place}"), item


def _text(content: object, place: str) -> str:
    if isinstance(content, str):
        return whole(content, place)
    if not isinstance(content, (list, tuple)):
        raise UsageError(f"{place} is of type {type(content).__name__}.", hint=_PARTS)
    if not content:
        raise UsageError(f"{place} is an empty list.", hint=_PARTS)
    return "\n".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    if not isinstance(part, Mapping):
        raise UsageError(f"{place} is of type {type(part).__name__}.", hint=_PARTS)
    if part.get("type") != "text":
        raise UsageError(f"{place} is a part of the type {part.get('type')!r}.", hint="The model reads text alone.")
    if not isinstance(part.get("text"), str):
        raise UsageError(f"{place}.text is not a string.", hint=_PARTS)
    return whole(part["text"], f"{place}.text")
