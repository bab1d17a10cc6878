"""Conversations to prompts, with a bundle's own chat template: Jinja in a sandbox, and a pinned date.

The rendering follows the ``apply_chat_template`` of Hugging Face transformers, which is what templates are written
for: blocks trimmed, loop controls, ``raise_exception``, ``strftime_now``, ``tojson`` that keeps letters as they are.
It knows text only: the tokens of a prompt are the tokenizer's business. ``edgepack.text.metering`` bounds the time and
the memory that a template takes, here its prompt's length is bounded.
A prompt knows which of its characters the template wrote (``edgepack.text.marks``).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from edgepack.errors import BundleError, UsageError
from edgepack.text.marks import Marked, concat, written
from edgepack.text.messages import checked, in_parts, plain

if TYPE_CHECKING:
    from edgepack.text.metering import MeteredEnvironment

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


TEMPLATE = "chat_template.jinja"
TOOL_USE = "additional_chat_templates/tool_use.jinja"

# Far above what any context holds: a longer prompt is a template that runs away.
MAX_CHARACTERS = 16 * 1024 * 1024
_REASON = 1000  # characters of what a template says of its failure

# What the template gets by other ways than as one of its variables.
_ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "strftime_now")


class ChatTemplate:
    """One compiled template.

    ``bos_token`` and ``eos_token`` are the strings that it may print ("" where the tokenizer has none). ``date``
    (YYYY-MM-DD) is the day that it prints unless a call names another. Without any date ``strftime_now`` is
    undefined, and the template takes the day that it has for that case: never the clock of the device.
    ``parts`` are the roles whose content it reads as a list of parts, ``tool_use`` is the template that is used in its
    place where tools are given, ``file`` its name in the bundle.
    Raises ``BundleError`` for a template that does not compile.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        date: str | None,
        parts: Collection[str] = (),
        tool_use: ChatTemplate | None = None,
        file: str = TEMPLATE,
    ) -> None:
        from jinja2 import TemplateSyntaxError

        self._source = source
        self._parts = frozenset(parts)
        self._tool_use = tool_use
        self._file = file
        self._names = {"bos_token": written(bos_token), "eos_token": written(eos_token)}
        self._date = date
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise BundleError(f"{file}, line {error.lineno}: {error.message}.") from None
        except _failures() as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise BundleError(f"{file} does not compile: {reason}.") from error

    @property
    def source(self) -> str:
        """The template as it is written."""
        return self._source

    @property
    def for_tools(self) -> ChatTemplate:
        """The template that is used where tools are given: one of its own where the model has it, else this."""
        return self._tool_use or self

    @cached_property
    def reads(self) -> frozenset[str]:
        """The names that the template reads from outside: "messages", and perhaps "tools" or "enable_thinking"."""
        from jinja2.meta import find_undeclared_variables

        return frozenset(find_undeclared_variables(_environment().parse(self._source)))

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        add_generation_prompt: bool = True,
        date: str | None = None,
    ) -> Marked:
        """Return the prompt for messages, each a mapping with ``role``, ``content`` (a text, or a list of text parts,
        see ``edgepack.text.messages``) and, where the template reads them, other fields of JSON's types.

        ``tools`` are function definitions in JSON schema, ``variables`` are the template's own, such as
        ``enable_thinking``. Raises ``UsageError`` for messages of another form, for tools or variables that the
        template does not read, and for messages that it refuses, with its reason; ``BundleError`` where the template
        itself fails.
        """
        context: dict[str, Any] = {
            **self._checked_variables(variables or {}),
            **self._names,
            "messages": [_with_role(message) for message in in_parts(checked(messages), self._parts)],
            "tools": self._checked_tools(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        day = date if date is not None else self._date
        if day is not None:
            context["strftime_now"] = _clock(day)
        return self._rendered(context)

    def _rendered(self, context: Mapping[str, Any]) -> Marked:
        pieces, length = [], 0
        try:
            for piece in self._template.generate(context):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_CHARACTERS:
                    raise BundleError(f"{self._file} writes more than {MAX_CHARACTERS:,} characters.")
        except (UsageError, BundleError):
            raise
        except _failures() as e:
            hint = "Name the day that it prints with date='YYYY-MM-DD'." if "strftime_now" in str(e) else None
            reason = str(e)[:_REASON].rstrip(".") or type(e).__name__
            raise BundleError(f"{self._file} fails on these messages: {reason}.", hint=hint) from e
        return concat(pieces)

    def _checked_tools(self, tools: Sequence[Mapping[str, object]] | None) -> list[Any] | None:
        if tools is None:
            return None
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
            raise UsageError(f"tools is of type {type(tools).__name__}.", hint="Pass a list of function definitions.")
        if "tools" not in self.reads:
            raise UsageError("This bundle's chat template knows no tools.", hint="Describe them in a message.")
        for index, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                raise UsageError(f"tools[{index}] is of type {type(tool).__name__}.", hint="It must be a mapping.")
        return [plain(tool, f"tools[{index}]") for index, tool in enumerate(tools)]

    def _checked_variables(self, variables: Mapping[str, object]) -> dict[str, Any]:
        known = sorted(self.reads.difference(_ARGUMENTS, _environment().globals)) if variables else []
        for name in variables:
            if name not in known:
                hint = f"It reads: {', '.join(known) or 'none'}."
                raise UsageError(f"This bundle's chat template reads no variable {name!r}.", hint=hint)
        return {name: plain(value, name) for name, value in variables.items()}


def _with_role(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose role, a word of the template's language, counts as written: Phi-3 makes tokens of it."""
    role = message["role"]
    return {**message, "role": written(role) if role.isidentifier() else role}


@cache
def _failures() -> tuple[type[Exception], ...]:
    """Return what a template may fail with: all that the language itself raises. Not what an application's handler of
    a signal raises meanwhile, an error of its own or a ``TimeoutError``."""
    from jinja2 import TemplateError

    return (TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError,
            RuntimeError, StopIteration, SyntaxError, TypeError, ValueError, re.error)  # fmt: skip


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
def _environment() -> MeteredEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    from edgepack.text.metering import MeteredEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here its body is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012 - the name and the kind that jinja2 reads

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = MeteredEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
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
    if not isinstance(indent, int | None) or (indent or 0) > 32 or len("".join(separators or ())) > 32:
        raise ValueError("tojson takes up to 32 spaces and short separators")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise UsageError(f"The chat template refuses the messages: {str(message)[:_REASON].rstrip('.')}.")
