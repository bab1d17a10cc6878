"""Conversations to prompts, with a bundle's own chat template: Jinja in a sandbox, and a pinned date.

The rendering follows the ``apply_chat_template`` of Hugging Face transformers, which is what templates are written
for: blocks trimmed, loop controls, ``raise_exception``, ``strftime_now``, ``tojson`` that keeps letters as they are.
It knows text only: the tokens of a prompt are the tokenizer's business.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from edgepack.errors import BundleError, UsageError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


class ChatTemplate:
    """One compiled template.

    ``bos_token`` and ``eos_token`` are the strings that it may print ("" where the tokenizer has none). ``date``
    (YYYY-MM-DD) is the day that it prints unless a call names another. Without any date ``strftime_now`` is
    undefined, and the template takes the day that it has for that case: never the clock of the device.
    Raises ``BundleError`` for a template that does not compile.
    """

    def __init__(self, source: str, *, bos_token: str, eos_token: str, date: str | None) -> None:
        from jinja2 import TemplateSyntaxError

        self._names = {"bos_token": bos_token, "eos_token": eos_token}
        self._date = date
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise BundleError(f"chat_template.jinja, line {error.lineno}: {error.message}.") from None

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, date: str | None = None
    ) -> str:
        """Return the prompt for messages, each a mapping with ``role`` and ``content`` and, where the template reads
        them, other fields; all are strings.

        Raises ``UsageError`` for messages of another form, or that the template refuses, with its reason;
        ``BundleError`` where the template itself fails.
        """
        from jinja2 import TemplateError

        context: dict[str, Any] = {
            **self._names,
            "messages": _checked(messages),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        day = date if date is not None else self._date
        if day is not None:
            context["strftime_now"] = _clock(day)
        try:
            return self._template.render(context)
        except UsageError:
            raise
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as e:
            hint = "Name the day that it prints with date='YYYY-MM-DD'." if "strftime_now" in str(e) else None
            raise BundleError(f"chat_template.jinja fails on these messages: {e}.", hint=hint) from e


def _checked(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "messages is not a list of at least one message.", hint='Pass [{"role": "user", "content": "..."}].'
        )
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise UsageError(f"{place} is of type {type(message).__name__}.", hint="It must be a mapping.")
        for field in ("role", "content"):
            if field not in message:
                raise UsageError(f"{place}.{field} is missing.")
        for field, value in message.items():
            if not isinstance(value, str):
                raise UsageError(f"{place}.{field} is of type {type(value).__name__}.", hint="It must be a string.")
    return [dict(message) for message in messages]


def _clock(day: str) -> Callable[[str], str]:
    """Return ``strftime_now`` for a fixed day, midnight, with English names whatever the program's locale."""
    try:
        fixed = datetime.date.fromisoformat(day)
    except (ValueError, TypeError):
        raise UsageError(f"The date {day!r} is not a day.", hint="Write it as YYYY-MM-DD.") from None
    weekday, month = _DAYS[fixed.weekday()], _MONTHS[fixed.month - 1]
    names = {"%%": "%%", "%A": weekday, "%a": weekday[:3], "%B": month, "%b": month[:3], "%p": "AM"}

    def strftime_now(layout: str) -> str:
        return fixed.strftime(re.sub("%.", lambda code: names.get(code[0], code[0]), layout))

    return strftime_now


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here its body is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012 - the name and the kind that jinja2 reads

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which no template of a language model expects.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise UsageError(f"The chat template refuses the messages: {str(message).rstrip('.')}.")
