"""From edgepack's options to the fields of a request, or to an error that names what the server cannot honour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.bundle.manifest import Generation
from edgepack.decoding.options import (
    ChatOptions,
    GenerationOptions,
    read_continue,
    read_control_tokens,
    read_n_best,
    read_reuse,
    read_room,
    read_stops,
)
from edgepack.decoding.sample import Sampling
from edgepack.errors import UsageError, check_options
from edgepack.text.messages import plain
from edgepack.text.tools import Tools
from edgepack_connect.capabilities import Field, Fields, Kind

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_BINDING = ("json_schema", "regex", "grammar")
_SWITCHES = ("prompt_lookup", "draft", "thinking", "parallel_tool_calls")
_TEXTS = ("regex", "grammar", "date")

KNOWN: Mapping[Kind, tuple[str, ...]] = {
    "text": tuple(GenerationOptions.__annotations__),
    "chat": tuple(ChatOptions.__annotations__),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Options that were given, checked, each as the JSON value that stands for it; and the tools among them."""

    values: Mapping[str, object]
    tools: Tools | None = None


def read_options(kind: Kind, options: Mapping[str, Any]) -> Wanted:
    """Return the options that say something. Raises ``UnknownOptionError``, ``UsageError`` and ``SchemaError`` as a
    model on this machine does."""
    check_options("Generation", options, KNOWN[kind])
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    wanted: ChatOptions = given  # type: ignore[assignment]  # the names are known
    values: dict[str, object] = {}
    sampling = Sampling(**{name: given[name] for name in _SAMPLING if name in given})
    values |= {name: getattr(sampling, name) for name in _SAMPLING if name in given}
    policy, most = read_room(wanted, Generation())
    values |= {name: value for name, value in (("on_overflow", policy), ("max_tokens", most)) if name in given}
    if stops := read_stops(wanted):
        values["stop"] = list(stops)
    if (count := read_n_best(wanted)) is not None:
        values |= {"logprobs": True} | ({"n_best": count} if count else {})
    for name, reading in (("reuse", read_reuse), ("control_tokens", read_control_tokens)):
        if name in given:
            values[name] = reading(wanted)
    if read_continue(wanted):
        values["continue_final"] = True
    for name in _SWITCHES:
        if name in given:
            values[name] = _checked(name, given[name], bool, "True, False or None")
    _check_thoughts(given, values)
    for name in _TEXTS:
        if name in given:
            values[name] = _checked(name, given[name], str, "a text")
    if "variables" in given:
        values["variables"] = plain(_checked("variables", given["variables"], Mapping, "a mapping"), "variables")
    bound = [name for name in _BINDING if name in given]
    if len(bound) > 1:
        raise UsageError(f"{bound[0]} was given beside {bound[1]}.", hint="An answer is bound by one of them.")
    if "json_schema" in given and given["json_schema"] is not False:
        values["json_schema"] = _schema(given["json_schema"])
    several = bool(given.get("parallel_tool_calls", True))
    tools = Tools.of(given["tools"], given.get("tool_choice"), several) if "tools" in given else None
    if tools is not None:
        values["tools"] = tools.definitions
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in given and tools is None:
            raise UsageError(f"{name} was given without tools.", hint="Leave it out, or pass tools.")
    if "tool_choice" in given:
        values["tool_choice"] = _choice(given["tool_choice"])
    return Wanted(values, tools)


def write_fields(wanted: Wanted, fields: Fields, server: str, version: tuple[int, ...] | None) -> dict[str, object]:
    """Return the fields of a request that ask for all that is wanted, in their levels.

    ``version`` is the server's, None where it does not say. Raises ``UsageError`` that names an option and the server.
    """
    body: dict[str, object] = {}
    for name, value in wanted.values.items():
        found = fields.get(name)
        if found is None:
            raise UsageError(f"{name} was given, and {server} cannot honour it.", hint="Leave it out.")
        if found.since is not None and (version is None or version < found.since):
            first, this = (".".join(map(str, each)) for each in (found.since, version or ()))
            raise UsageError(
                f"{name} was given, and {server} is known to honour it from {first} on.",
                hint=f"This one is {this or 'of an unknown version'}: upgrade it, or leave {name} out.",
            )
        written = _written(name, value, found, server)
        if found.path:
            put(body, found.path, written)
        for path, beside in found.beside.items():
            put(body, path, beside)
    return body


def put(body: dict[str, object], path: str, value: object) -> None:
    """Set a field by its path, levels by dots."""
    *levels, last = path.split(".")
    for level in levels:
        inner = body.setdefault(level, {})
        assert isinstance(inner, dict)  # a path that leads through a value would be a fault of our own
        body = inner
    body[last] = value


def _written(name: str, value: object, field: Field, server: str) -> object:
    if field.values is None:
        return field.instead.get(value, value) if isinstance(value, str | int | float) else value
    if isinstance(value, str | bool) and value in field.values:
        return field.values[value]
    known = " or ".join(f"{name}={each!r}" for each in field.values)
    raise UsageError(f"{name} is {value!r}, which {server} cannot honour.", hint=f"It takes {known} alone.")


def _checked(name: str, value: object, kind: type, allowed: str) -> object:
    if not isinstance(value, kind):
        raise UsageError(f"{name} is {value!r}.", hint=f"It must be {allowed}.")
    return value


def _check_thoughts(given: Mapping[str, object], values: dict[str, object]) -> None:
    if "thinking_tokens" not in given:
        return
    most = given["thinking_tokens"]
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise UsageError(f"thinking_tokens is {most!r}.", hint="It must be a number of tokens, 0 or more.")
    if given.get("thinking") is False:
        raise UsageError("thinking_tokens was given beside thinking=False.", hint="Leave one of them out.")
    values["thinking_tokens"] = most


def _schema(given: object) -> dict[str, object]:
    from edgepack.extras import needed

    with needed("A schema", "structured"):
        from edgepack.structured.json_schema import read_schema

        return read_schema(given)


def _choice(given: Any) -> object:
    """Return ``tool_choice``, which was checked with the tools, as OpenAI's interface has it."""
    if isinstance(given, Mapping):
        function = given.get("function", given)
        given = function["name"]
    return given if given in ("auto", "none", "required") else {"type": "function", "function": {"name": given}}
