"""Tools that a model may call: their definitions for the chat template, and the calls in an answer, validated.

The form in which a model writes calls is its template's, see ``edgepack.text.tool_formats``. Nothing is executed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from edgepack.errors import SchemaError, ToolCallError, UsageError
from edgepack.extras import needed
from edgepack.prefix import common_length
from edgepack.text.detokenize import Detokenizer
from edgepack.text.messages import plain
from edgepack.text.thoughts import after, marks_of
from edgepack.text.tool_arguments import coerced, place_of, strict, typed
from edgepack.text.tool_choice import Choice, binding, read_choice
from edgepack.text.tool_formats import ARGUMENTS, format_of
from edgepack.text.tool_signature import definition_of

if TYPE_CHECKING:
    from edgepack.text.chat import ChatTemplate
    from edgepack.text.prompts import Prompt
    from edgepack.text.tokenizer import Tokenizer

# Templates write a name between quotes as it is.
_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for. ``arguments`` are valid by the tool's schema; ``id`` is the model's, if any.

    ``coerced`` has what the model wrote in another type than the schema asks for, such as "3" for 3, by its place.
    """

    name: str
    arguments: dict[str, Any]
    id: str | None = None
    coerced: dict[str, Any] = field(default_factory=dict)

    def answered(self, gave: object) -> dict[str, object]:
        """Return the message that tells the model what its call gave: a text as it is, an exception as the error that
        it is, anything else as JSON. Raises ``UsageError`` for what JSON does not have."""
        if isinstance(gave, BaseException):
            gave = f"Error: {type(gave).__name__}: {gave}"
        content = gave if isinstance(gave, str) else json.dumps(plain(gave, "gave"), ensure_ascii=False)
        message: dict[str, object] = {"role": "tool", "name": self.name, "content": content}
        return message if self.id is None else {**message, "tool_call_id": self.id}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        told = {"name": self.name, "arguments": self.arguments, "id": self.id}
        return told | {"coerced": self.coerced} if self.coerced else told


class Spoken(NamedTuple):
    """An answer with ``names`` of special tokens in its ``text``, where the model wrote those tokens."""

    text: str
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int], tokenizer: Tokenizer, template_source: str, *, at_start: bool) -> Spoken:
        """Return an answer with the special tokens that mark a call or a thought, which have no text of their own."""
        form = format_of(template_source)
        marks = "\0".join((form.opening, *form.inside, form.closing, *chain(*marks_of(template_source))))
        words, pieces, names = Detokenizer(tokenizer, at_start=at_start), [], []
        for id in ids:
            pieces.append(words.push(id))
            if id in tokenizer.special_ids and (name := tokenizer.token(id)) in marks:
                pieces.append(name)
                names.append(name)
        return cls("".join(pieces), tuple(names))


class Tools:
    """The tools of one question. ``definitions`` are in OpenAI's form, ``{"type": "function", "function": {...}}``;
    ``choice`` says which of them the answer is to call, ``several`` whether more than the first of its calls counts."""

    def __init__(self, definitions: list[dict[str, Any]], choice: Choice, several: bool = True) -> None:
        self.definitions = definitions
        self._choice = choice
        self._most = None if several else 1
        self._validators = {
            each["function"]["name"]: _validator(each["function"]["parameters"], f"tools[{index}].parameters")
            for index, each in enumerate(definitions)
        }

    @classmethod
    def of(
        cls, tools: Sequence[Callable[..., object] | Mapping[str, object]], choice: object = None, several: bool = True
    ) -> Tools:
        """Return the tools for functions and for definitions in JSON schema, in OpenAI's form or only its "function".

        See ``edgepack.text.tool_signature.definition_of`` for functions, and ``edgepack.text.tool_choice`` for
        ``choice``. Raises ``SchemaError`` that names the place, ``UsageError`` for a choice that is none.
        """
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
            raise SchemaError(f"tools is of type {type(tools).__name__}.", hint="Pass a list of functions.")
        if not tools:
            raise SchemaError("tools is empty.", hint="Leave it out to have none.")
        found = [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
        names = [each["name"] for each in found]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise SchemaError(f"tools[{index}].name is {name!r}, as is another's.", hint="Give each its own name.")
        return cls([{"type": "function", "function": each} for each in found], read_choice(choice, names), several)

    def check(self, template_source: str) -> None:
        """Raise ``SchemaError`` for a chat template whose form of calls is not known."""
        format_of(template_source)

    def given(
        self, messages: Sequence[Mapping[str, object]], template: ChatTemplate
    ) -> tuple[list[Mapping[str, object]], list[dict[str, Any]] | None, dict[str, object]]:
        """Return the messages, tools and variables for ``ChatTemplate.render``: each template's own way to get them.

        Most read ``tools``; SmolLM3's first one the variable ``xml_tools``, and Phi-4-mini's a field of the system
        message, which is added where there is none.
        """
        functions = [each["function"] for each in self.definitions]
        if "tools" not in template.reads and "xml_tools" in template.reads:
            return [*messages], None, {"xml_tools": functions}
        if "tools" in template.reads or not format_of(template.source).in_system:
            return [*messages], self.definitions, {}
        begun = bool(messages) and messages[0].get("role") == "system"
        system = messages[0] if begun else {"role": "system", "content": ""}
        with_tools = {**system, "tools": json.dumps(functions, ensure_ascii=False)}
        return [with_tools, *messages[int(begun) :]], None, {}

    def binding(self, options: Mapping[str, Any], template_source: str) -> Mapping[str, Any]:
        """Return the options of an answer with what binds it to a call, where the choice asks for one.

        Raises ``UsageError`` for what would bind the answer as well.
        """
        if self._choice.names is None:
            return options
        for name in ("json_schema", "regex", "grammar", "continue_final"):
            if options.get(name) not in (None, False):
                raise UsageError(
                    f"{name} was given beside a tool_choice that asks for a call.", hint="Leave one of them out."
                )
        return binding(self._choice, format_of(template_source), [each["function"] for each in self.definitions])

    def parse(
        self, text: str, template_source: str, begun: str = "", spoken: Spoken | None = None
    ) -> tuple[str, tuple[ToolCall, ...]]:
        """Return an answer without its calls, and the calls; an answer without any is returned as it is.

        ``begun`` is what of the answer its prompt ends with, such as the mark of a thought; ``spoken`` is the answer
        with the marks that are special tokens, see ``Spoken.of``.
        Raises ``ToolCallError`` for an answer that begins a call and is not one of a known tool with valid arguments,
        ``SchemaError`` for a template as in ``check``.
        """
        form, spoken = format_of(template_source), spoken or Spoken(text)
        whole = begun + spoken.text
        try:
            content, found = form.split(whole, self._validators, after(whole, marks_of(template_source)))
            calls = tuple(self._call(value, text, form.untyped) for value in found[: self._most])
        except ToolCallError as error:
            error.text = text
            raise
        if not calls:
            return text, ()
        content = content[common_length(content, begun.lstrip()) :]
        for name in spoken.names:
            content = content.replace(name, "")
        return content.strip(), calls

    def reading(
        self, tokenizer: Tokenizer, template_source: str, prompt: Prompt
    ) -> Callable[[str, Sequence[int]], tuple[str, tuple[ToolCall, ...]]] | None:
        """Return ``parse`` for the answer to a prompt: for its text, and its ids where they say no more than that.

        None where the choice is that nothing is called.
        """
        if not self._choice.reads:
            return None

        def parse(text: str, ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
            spoken = Spoken.of(ids, tokenizer, template_source, at_start=prompt.at_start) if ids else None
            return self.parse(text, template_source, prompt.begun, spoken)

        return parse

    def called(self, name: str, arguments: str, id: str | None, text: str) -> ToolCall:
        """Return a call that a server has read from an answer: its ``arguments`` are JSON. Raises as ``parse``."""
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            raise ToolCallError(f"The arguments of a call of {name[:64]!r} are no JSON.", text=text) from None
        return self._call({"name": name, "arguments": value, "id": id}, text, untyped=False)

    def _call(self, value: object, text: str, untyped: bool) -> ToolCall:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(name, str):
            raise ToolCallError("A tool call is not an object with a name.", text=text)
        if name not in self._validators:
            hint = f"It was given: {', '.join(self._validators)}."
            raise ToolCallError(f"The model called {name[:64]!r}, which is no tool.", text=text, hint=hint)
        given = [key for key in ARGUMENTS if key in value]
        if len(given) != 1 or not isinstance(value[given[0]], dict):
            raise ToolCallError(f"A call of {name!r} has no object of arguments.", text=text)
        arguments: dict[str, Any] = value[given[0]]
        if untyped:
            arguments = typed(self._validators[name], arguments)
        try:
            # What could not be told again in the next turn.
            plain({**value, given[0]: arguments}, f"A call of {name!r}")
        except UsageError as error:
            raise ToolCallError(error.message, text=text) from None
        written: dict[str, Any] = {}
        if reason := _fault(self._validators[name], arguments):
            arguments, written = coerced(self._validators[name], arguments)
            reason = _fault(self._validators[name], arguments) if written else reason
        if reason:
            raise ToolCallError(f"The arguments of a call of {name!r} do not fit its schema: {reason}.", text=text)
        mark = value.get("id")
        return ToolCall(name, arguments, mark if isinstance(mark, str) else None, written)


def _function(tool: object, place: str) -> dict[str, Any]:
    """Return the name, description and parameters of a tool, checked but for the schema, in JSON's own types."""
    if isinstance(tool, Mapping):
        function = tool.get("function", tool)
        if function is not tool and tool.get("type", "function") != "function":
            raise SchemaError(f"{place}.type is {tool['type']!r}.", hint="It must be 'function'.")
    elif callable(tool):
        function = definition_of(tool, place)
    else:
        raise SchemaError(f"{place} is of type {type(tool).__name__}.", hint="Pass a function or its definition.")
    if not isinstance(function, Mapping):
        raise SchemaError(f"{place}.function is of type {type(function).__name__}.", hint="It must be a mapping.")
    begun = {"name": None, "description": "", "parameters": {"type": "object", "properties": {}}}
    try:
        made: dict[str, Any] = json.loads(json.dumps({**begun, **function}, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"{place} is not JSON: {error}.", hint="Use the values that JSON has.") from None
    name, description, parameters = made["name"], made["description"], made["parameters"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(f"{place}.name is {name!r}.", hint="It must be 1 to 64 letters, digits, '_', '-' or '.'.")
    if not isinstance(description, str):
        raise SchemaError(f"{place}.description is of type {type(description).__name__}.", hint="It must be a string.")
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise SchemaError(f"{place}.parameters is no JSON schema of type 'object'.", hint="Arguments have names.")
    return made


def _validator(schema: dict[str, Any], place: str) -> Any:
    """Return a validator for a schema, by the draft that it names. It fetches no schema from elsewhere."""
    with needed("A call of a tool", "structured"):
        from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError as WrongSchema
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except WrongSchema as error:
        raise SchemaError(f"{place_of(place, error.absolute_path)}: {_short(error.message)}.") from None
    except RecursionError:
        raise SchemaError(f"{place} has too many levels.") from None
    specification = specification_with(kind.ID_OF(kind.META_SCHEMA))
    resolver = Registry().with_resource("", specification.create_resource(schema)).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise SchemaError(f"{place} refers to {reference!r}, which it does not hold.") from None
    # What names its draft again inside a reference to itself would be checked by the draft's own types.
    validator = strict(kind)({key: value for key, value in schema.items() if key != "$schema"}, registry=Registry())
    try:
        validator.is_valid({})
    except RecursionError:
        raise SchemaError(f"{place} refers to itself without end.") from None
    return validator


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[key] for key in ("$ref", "$dynamicRef") if isinstance(value.get(key), str))
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _references(item)


def _fault(validator: Any, arguments: dict[str, Any]) -> str | None:
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(validator.iter_errors(arguments))
    except RecursionError:
        return "they have too many levels"
    except Unresolvable as error:  # a part with an $id of its own
        return f"the schema refers to {error.ref!r}, which it does not hold"
    return None if error is None else f"{place_of('arguments', error.absolute_path)}: {_short(error.message)}"


def _short(message: str) -> str:
    """Return a validator's sentence, which may quote a whole value, without its middle."""
    message = message.rstrip(".")
    return message if len(message) <= 200 else f"{message[:100]} ... {message[-90:]}"
