"""Tools: what a function becomes, which calls an answer holds in each format, and what is refused."""

from __future__ import annotations

import enum
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_templates import real_template

from edgepack.errors import EdgepackError, SchemaError, ToolCallError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.letters import BYTE_OF
from edgepack.text.prompts import Prompt
from edgepack.text.thoughts import marks_of
from edgepack.text.tokenizer import Tokenizer
from edgepack.text.tool_formats import format_of
from edgepack.text.tools import ToolCall, Tools

# Functions


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


@dataclass
class Place:
    name: str
    height: float = 0.0
    tags: list[str] = field(default_factory=list)
    seen: int = field(default=0, init=False)


class Span(TypedDict):
    days: int
    hours: NotRequired[int]


class Loose(TypedDict, total=False):
    days: int


@dataclass
class Tree:
    children: list[Tree]


def get_weather(
    city: str,
    unit: Unit = Unit.CELSIUS,
    *,
    days: int | None = None,
    mode: Literal["fast", "full"] = "fast",
) -> str:
    """Tell the weather
    in a city.

    It asks a station nearby.

    Args:
        city (str): The city's name,
            in English.
        days: How many days ahead
    Returns:
        city: not a parameter here
    """
    return f"{city} {unit} {days} {mode}"


def plan(place: Place, span: Span, loose: Loose, marks: dict[str, list[bool]], last: float | str | None) -> None:
    """Plan a trip.
    place: Where to go.
    :param span: How long.
    """


def test_a_function_becomes_a_definition() -> None:
    (made,) = Tools.of([get_weather]).definitions
    assert made == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tell the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city's name, in English."},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                    "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "How many days ahead"},
                    "mode": {"type": "string", "enum": ["fast", "full"], "default": "fast"},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_nested_types_become_nested_schemas() -> None:
    (made,) = Tools.of([plan]).definitions
    assert made["function"]["description"] == "Plan a trip."
    parameters = made["function"]["parameters"]
    assert parameters["required"] == ["place", "span", "loose", "marks", "last"]
    assert parameters["properties"] == {
        "place": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "height": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name"],
            "additionalProperties": False,
            "description": "Where to go.",
        },
        "span": {
            "type": "object",
            "properties": {"days": {"type": "integer"}, "hours": {"type": "integer"}},
            "required": ["days"],
            "additionalProperties": False,
            "description": "How long.",
        },
        "loose": {
            "type": "object",
            "properties": {"days": {"type": "integer"}},
            "required": [],
            "additionalProperties": False,
        },
        "marks": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
        "last": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]},
    }


def test_a_method_is_a_tool_without_its_self() -> None:
    class Home:
        def light(self, on: bool) -> None: ...

    (made,) = Tools.of([Home().light]).definitions
    assert made["function"]["parameters"]["properties"] == {"on": {"type": "boolean"}}
    assert made["function"]["description"] == ""


def takes_unannotated(x) -> None: ...  # type: ignore[no-untyped-def]
def takes_many(*x: int) -> None: ...
def takes_keywords(**x: int) -> None: ...
def takes_by_place(x: int, /) -> None: ...
def takes_anything(x: Any) -> None: ...
def takes_a_bare_list(x: list) -> None: ...  # type: ignore[type-arg]
def takes_a_set(x: set[int]) -> None: ...
def takes_other_keys(x: dict[int, str]) -> None: ...
def takes_bytes(x: Literal[b"a"]) -> None: ...
def takes_a_path(x: list[Path]) -> None: ...
def takes_an_annotated(x: Annotated[int, "positive"]) -> None: ...
def takes_a_tree(x: Tree) -> None: ...
def takes_an_unhashable(x: [int]) -> None: ...  # type: ignore[misc, valid-type]
def takes_the_unknown(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def takes_infinity(x: float = float("inf")) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (takes_unannotated, "'x' has no annotation"),
        (takes_many, "'x' is not passed by name"),
        (takes_keywords, "'x' is not passed by name"),
        (takes_by_place, "'x' is not passed by name"),
        (takes_anything, r"'x' is of type (typing\.)?Any"),
        (takes_a_bare_list, "'x' is of type list,"),
        (takes_a_set, r"'x' is of type set\[int\]"),
        (takes_other_keys, r"'x' is of type dict\[int, str\]"),
        (takes_bytes, "'x' has the choice b'a'"),
        (takes_a_path, "'x' is of type Path"),
        (takes_an_annotated, r"'x' is of type typing\.Annotated"),
        (takes_a_tree, "'x', 'children' holds Tree inside itself"),
        (takes_an_unhashable, "'x' is of type"),
        (takes_the_unknown, "no readable signature: name 'Missing'"),
        (takes_infinity, "is not JSON"),
    ],
)
def test_what_a_schema_cannot_say_is_refused_by_name(function: Callable[..., object], reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as raised:
        Tools.of([get_weather, function])
    assert "tools[1]" in str(raised.value)
    assert reason == "is not JSON" or function.__name__ in str(raised.value)


# Definitions

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather", "parameters": CITY}
ANYTHING: dict[str, Any] = {"name": "f", "description": "", "parameters": {"type": "object"}}


def test_both_forms_of_a_definition_are_the_same() -> None:
    full = {"type": "function", "function": WEATHER}
    assert Tools.of([WEATHER]).definitions == Tools.of([full]).definitions == [full]


def test_what_a_definition_may_leave_out_is_filled_in() -> None:
    (made,) = Tools.of([{"name": "now", "strict": True}]).definitions
    assert made["function"] == {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
        "strict": True,
    }


def test_definitions_are_copies() -> None:
    given = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": (1, 2)}}}}
    (made,) = Tools.of([given]).definitions
    given["parameters"]["type"] = "string"  # type: ignore[index]
    assert made["function"]["parameters"] == {"type": "object", "properties": {"x": {"enum": [1, 2]}}}


def schema(**properties: object) -> dict[str, object]:
    return {"name": "f", "parameters": {"type": "object", "properties": properties}}


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        ([], "tools is empty"),
        ("f", "tools is of type str"),
        (WEATHER, "tools is of type dict"),
        (get_weather, "tools is of type function"),
        ([WEATHER, 3], r"tools\[1\] is of type int"),
        ([WEATHER, WEATHER], r"tools\[1\]\.name is 'weather', as is another's"),
        ([{}], r"tools\[0\]\.name is None"),
        ([{"name": 'a"b'}], r"tools\[0\]\.name is 'a\"b'"),
        ([{"name": "x" * 65}], r"tools\[0\]\.name"),
        ([lambda x: x], r"tools\[0\] \(<lambda>\)"),
        ([{"name": "f", "description": 3}], r"tools\[0\]\.description is of type int"),
        ([{"type": "tool", "function": WEATHER}], r"tools\[0\]\.type is 'tool'"),
        ([{"type": "function", "function": "f"}], r"tools\[0\]\.function is of type str"),
        ([{"name": "f", "parameters": []}], r"tools\[0\]\.parameters is no JSON schema of type 'object'"),
        ([{"name": "f", "parameters": {"city": {"type": "str"}}}], r"tools\[0\]\.parameters is no JSON schema"),
        ([{"name": "f", "parameters": {"type": "array"}}], r"tools\[0\]\.parameters is no JSON schema"),
        ([WEATHER, schema(x={"type": "strin"})], r"tools\[1\]\.parameters\.properties\.x\.type: 'strin'"),
        ([schema(x={"pattern": "["})], r"tools\[0\]\.parameters\.properties\.x\.pattern: "),
        ([schema(x={"anyOf": [{}, 3]})], r"tools\[0\]\.parameters\.properties\.x\.anyOf\[1\]: 3"),
        ([schema(x={"$ref": "#/$defs/y"})], r"tools\[0\]\.parameters refers to '#/\$defs/y'"),
        ([schema(x={"$ref": "https://example.org/x.json"})], r"refers to 'https://example\.org/x\.json'"),
        ([{"name": "f", "parameters": {"type": "object", "$ref": "#"}}], "refers to itself without end"),
        ([schema(x={"const": {1}})], r"tools\[0\] is not JSON"),
        ([schema(x={"maximum": float("nan")})], r"tools\[0\] is not JSON"),
    ],
)
def test_wrong_tools_are_named(tools: Any, place: str) -> None:
    with pytest.raises(SchemaError, match=place):
        Tools.of(tools)


def test_references_inside_a_schema_are_followed_in_its_own_draft() -> None:
    new = {"type": "object", "$defs": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/n"}}}
    old = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "definitions": {"n": {"type": "integer"}},
        "properties": {"x": {"items": [{"$ref": "#/definitions/n"}]}},
    }
    tools = Tools.of([{"name": "new", "parameters": new}, {"name": "old", "parameters": old}])
    assert [call.arguments for call in parsed(tools, "new", {"x": 1})] == [{"x": 1}]
    for name, wrong in (("new", "a"), ("old", ["a"])):
        with pytest.raises(ToolCallError, match=r"arguments\.x"):
            parsed(tools, name, {"x": wrong})


def test_references_of_a_part_with_its_own_id_go_no_further() -> None:
    def tools(reference: str) -> Tools:
        part = {"$id": "https://example.org/part", "properties": {"y": {"$ref": reference}}}
        whole = schema(x=part)
        whole["parameters"] |= {"$defs": {"n": {"type": "integer"}}}  # type: ignore[operator]
        return Tools.of([whole])

    with pytest.raises(ToolCallError, match=r"refers to '/\$defs/n', which it does not hold"):
        parsed(tools("#/$defs/n"), "f", {"x": {"y": 1}})
    with pytest.raises(SchemaError, match=r"refers to 'other\.json'"):
        tools("other.json")


# Formats: templates as small as they can be that write what the real ones do

HERMES = r"""{{ "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}
{%- for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}
{%- for c in m.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' }}{{ c.function.name }}", "arguments": {{ c.function.arguments|tojson }}}
</tool_call>
{%- endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"""
LLAMA = """Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.
{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{% for c in m.tool_calls or [] %}
{{- '{"name": "' + c.function.name + '", ' + '"parameters": ' }}{{ c.function.arguments|tojson }}}
{%- if not loop.last %}; {% endif %}{% else %}{{ m.content }}{% endfor %}<|eot_id|>{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"""
LIST = """{%- for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}MARK[{% for c in m.tool_calls %}
{{- c.function|tojson }}{% if not loop.last %}, {% endif %}{% endfor %}]END{% else %}{{ m.content }}{% endif %}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
PHI = LIST.replace("MARK", "<|tool_call|>").replace("END", "<|/tool_call|>") + "{# <|tool|><|/tool|> #}"
GRANITE = LIST.replace("MARK", "<|tool_call|>").replace("END", "")
MISTRAL = LIST.replace("MARK", "[TOOL_CALLS]").replace("END", "")
ENDS = {HERMES: "<|im_end|>", LLAMA: "<|eot_id|>", PHI: "<|end|>", GRANITE: "<|end|>", MISTRAL: "<|end|>"}
TEMPLATES = pytest.mark.parametrize("source", ENDS, ids=["hermes", "llama", "phi", "granite", "mistral"])
BARE = pytest.mark.parametrize("source", [LLAMA, PHI, GRANITE, MISTRAL], ids=["llama", "phi", "granite", "mistral"])

USER = [{"role": "user", "content": "Hi"}]
F = Tools.of([ANYTHING, WEATHER])


@cache
def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2024-07-26")


def assistant(content: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    made = [{"type": "function", "function": each, "id": call.id} for each, call in zip(functions, calls, strict=True)]
    return {"role": "assistant", "content": content, "tool_calls": made}


def written(source: str, calls: Sequence[ToolCall], *, end: str, content: str = "", tools: Tools = F) -> str:
    """Return what a template prints for an assistant's calls, as the model would have written it."""
    template = template_of(source)
    given = tools.definitions if "tools" in template.reads else None
    prompt = template.render(USER, tools=given)
    whole = template.render([*USER, assistant(content, calls)], tools=given, add_generation_prompt=False)
    assert whole.startswith(prompt)
    assert whole.endswith(end)
    return whole[len(prompt) : len(whole) - len(end)]


def parsed(tools: Tools, name: str, arguments: object) -> tuple[ToolCall, ...]:
    text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    return tools.parse(text, HERMES)[1]


def read_or_refused(source: str, text: str) -> tuple[str, tuple[ToolCall, ...]] | ToolCallError:
    try:
        return F.parse(text, source)
    except ToolCallError as error:
        return error


TRICKY = ["}", "]", "}]", '"}', "; ", "\\", "\n", "</think>", "<think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]["]
TRICKY += ["<|python_tag|>", "<|tool_call|>", "<|/tool_call|>", '{"name": "f", "arguments": {}}', "<|im_end|>"]
TEXT = st.lists(st.sampled_from(TRICKY) | st.text(max_size=8), max_size=4).map("".join)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
CALLS = st.lists(
    st.builds(ToolCall, st.just("f"), st.dictionaries(TEXT, JSON, max_size=4), st.none()), min_size=1, max_size=3
)


@TEMPLATES
@settings(max_examples=60, deadline=None)
@given(calls=CALLS)
def test_what_a_template_writes_is_read_back(source: str, calls: list[ToolCall]) -> None:
    text = written(source, calls, end=ENDS[source])
    content, found = F.parse(text, source)
    assert content == ""
    assert repr(found) == repr(tuple(calls))


@BARE
@settings(max_examples=60, deadline=None)
@given(calls=CALLS)
def test_a_mark_that_is_a_special_token_need_not_be_there(source: str, calls: list[ToolCall]) -> None:
    mark = format_of(source)
    text = written(source, calls, end=ENDS[source]).removeprefix(mark.opening)
    if mark.closing:
        text = text.removesuffix(mark.closing)
    assert mark.closing != "</tool_call>"
    assert F.parse(text, source) == ("", tuple(calls))
    # An answer that thinks first is still nothing but calls.
    thought = "<think>\nf? " + mark.opening + "\n</think>"
    assert F.parse(f"{thought}\n\n{text}", source) == (thought, tuple(calls))


@TEMPLATES
@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from(TRICKY) | st.text(max_size=5), max_size=8).map("".join))
def test_any_text_is_read_or_refused(source: str, text: str) -> None:
    found = read_or_refused(source, text)
    if isinstance(found, ToolCallError):
        assert found.text == text
    else:
        assert found[1] or found[0] == text


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
ROME = ToolCall("weather", {"city": "Rome"})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("No call at all. ", "No call at all. ", ()),
        ("", "", ()),
        ('{"name": "weather", "arguments": {"city": "Rome"}}', "", (ROME,)),
        ('\n[{"name": "f", "arguments": {}}, {"name": "weather", "parameters": {"city": "Rome"}}]\n', "",
         (ToolCall("f", {}), ROME)),
        ('```json\n{"name": "weather", "arguments": {"city": "Rome"}}\n```', "", (ROME,)),
        ('```{"name": "f", "arguments": {}}```', "", (ToolCall("f", {}),)),
        ('<think>?</think>\n```\n{"name": "f", "arguments": {}}```\n', "<think>?</think>", (ToolCall("f", {}),)),
        *(
            (text, text, ())
            for text in (
                '{"name": "nothing", "arguments": {}}',
                '{"name": "f"}',
                '{"name": "f", "arguments": "{}"}',
                '[{"name": "f", "arguments": {}}, 3]',
                '{"a": "<tool_call>"}',
                "[]",
                '{"name": "f", "arguments": {}',
                '{"name": "f", "arguments": {}} is a call.',
                'A call: {"name": "f", "arguments": {}}',
                '```json\n{"name": "f", "arguments": {}}',
                '```json\n{"name": "f", "arguments": {}}\n``` is a call.',
                '```python\n{"name": "f", "arguments": {}}\n```',
                '"f"',
            )
        ),
        (f"I look.\n{CALL}", "I look.", (ROME,)),
        (f"  One {CALL} two\n{CALL}\n\nthree ", "One\ntwo\nthree", (ROME, ROME)),
        (CALL.replace("\n", ""), "", (ROME,)),
        (CALL.removesuffix("\n</tool_call>"), "", (ROME,)),
        (CALL.replace("arguments", "parameters"), "", (ROME,)),
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "", (ToolCall("f", {}),)),
        ('<tool_call>{"id": "c1", "name": "f", "arguments": {}}</tool_call>', "", (ToolCall("f", {}, "c1"),)),
        ('<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>', "", (ToolCall("f", {"x": "a\nb"}),)),
        (f"<think>\n<tool_call>?\n</think>\n\n{CALL}", "<think>\n<tool_call>?\n</think>", (ROME,)),
        ("<think>\nperhaps <tool_call>{", "<think>\nperhaps <tool_call>{", ()),
        (f"thought</think>{CALL}", "thought</think>", (ROME,)),
    ],
)  # fmt: skip
def test_hermes(text: str, content: str, calls: tuple[ToolCall, ...]) -> None:
    assert F.parse(text, HERMES) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"type": "function", "name": "f", "parameters": {}}', "", (ToolCall("f", {}),)),
        (' {"name": "f", "parameters": {}} ;\n{"name": "f", "parameters": {"x": 1}}\n', "",
         (ToolCall("f", {}), ToolCall("f", {"x": 1}))),
        ('<|python_tag|>{"name": "f", "parameters": {}}', "", (ToolCall("f", {}),)),
        ('I look.<|python_tag|>{"name": "f", "parameters": {}}', "I look.", (ToolCall("f", {}),)),
        # Answers in JSON that are no calls.
        ('{"name": "Ada", "born": 1815}', '{"name": "Ada", "born": 1815}', ()),
        ('{"name": "Ada", "born": 18', '{"name": "Ada", "born": 18', ()),
        ('{"name": "Ad', '{"name": "Ad', ()),
        ('{"name": 3, "parameters": {}}', '{"name": 3, "parameters": {}}', ()),
        ('{"a": "<|python_tag|>"}', '{"a": "<|python_tag|>"}', ()),
        ('{"a": 1} is JSON', '{"a": 1} is JSON', ()),
        ("{", "{", ()),
        ('A call: {"name": "f", "parameters": {}}', 'A call: {"name": "f", "parameters": {}}', ()),
    ],
)  # fmt: skip
def test_llama(text: str, content: str, calls: tuple[ToolCall, ...]) -> None:
    assert F.parse(text, LLAMA) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('I look. <|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|> Done.', "I look.\nDone.", 1),
        ('<|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|>', "", 1),
        ('[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]', "", 2),
        ("[1, 2]", "[1, 2]", 0),
        ("[]", "[]", 0),
        ('[{"name": "Ada"}]', '[{"name": "Ada"}]', 0),
        ("[see below] yes", "[see below] yes", 0),
    ],
)
def test_phi(text: str, content: str, calls: int) -> None:
    assert F.parse(text, PHI) == (content, (ToolCall("f", {}),) * calls)


@pytest.mark.parametrize(
    ("source", "text", "reason"),
    [
        (HERMES, "<tool_call>", "not JSON"),
        (HERMES, "<tool_call>\n{'name': 'f'}\n</tool_call>", "not JSON"),
        (HERMES, CALL[:40], "not JSON"),
        (
            HERMES,
            CALL.replace("\n</tool_call>", "}\n</tool_call>"),
            r"followed by '}\n</tool_call>' instead of '</tool_call>'",
        ),
        (HERMES, CALL.replace("</", "<"), "not JSON"),
        (HERMES, CALL.replace("</tool_call>", "</tool_c"), "followed by '</tool_c'"),
        (HERMES, '<tool_call>"f"</tool_call>', "not an object with a name"),
        (HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', "not an object with a name"),
        (HERMES, CALL.replace("weather", "wether"), "called 'wether', which is no tool. It was given: f, weather."),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', "call of 'f' has no object of arguments"),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "has no object of arguments"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>', "has no object"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN is no finite number"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "1e999 is no finite number"),
        (HERMES, CALL.replace('"Rome"', "1"), "'weather' do not fit its schema: arguments.city: 1 is not of type"),
        (HERMES, CALL.replace("city", "town"), "arguments: 'city' is a required property"),
        (HERMES, f"{CALL}\n{CALL[:30]}", "not JSON"),
        (LLAMA, '{"name": "weather", "parameters": {"city": "Ro', "not JSON"),
        (LLAMA, '{"name": "wea', "not JSON"),
        (LLAMA, '{ "name" : "nothing", "parameters": {"a', "not JSON"),
        (LLAMA, '{"name": "nothing", "parameters": {}}', "'nothing', which is no tool"),
        (LLAMA, '{"name": "f"}', "has no object of arguments"),
        (LLAMA, '{"name": "f", "parameters": {}} I did it', "followed by 'I did it'"),
        (LLAMA, '{"name": "f", "parameters": {}};', "not JSON"),
        (LLAMA, "<|python_tag|>print(1)", "not JSON"),
        (PHI, '[{"name": "f", "arguments": {"x": [1, 2', "not JSON"),
        (PHI, '<|tool_call|>[{"name": "f", "arguments": {}}] and', "followed by 'and' instead of '<|/tool_call|>'"),
        (PHI, "<|tool_call|>[]<|/tool_call|>", "list of tool calls is empty"),
        (PHI, "<|tool_call|>[3]<|/tool_call|>", "not an object with a name"),
    ],
)
def test_a_call_that_is_none_is_an_error_with_the_answer(source: str, text: str, reason: str) -> None:
    with pytest.raises(ToolCallError) as raised:
        F.parse(text, source)
    assert raised.value.text == text
    assert reason in str(raised.value)


def test_arguments_are_checked_as_the_schema_says() -> None:
    tools = Tools.of([plan])
    good: dict[str, Any] = {
        "place": {"name": "Rome", "height": 21, "tags": ["a"]},
        "span": {"days": 2},
        "loose": {},
        "marks": {"x": [True]},
        "last": None,
    }
    assert parsed(tools, "plan", good) == (ToolCall("plan", good),)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"place": {}}, "arguments.place: 'name' is a required property"),
        ({"place": {"name": "Rome", "tags": ["a", 3]}}, "arguments.place.tags[1]: 3 is not of type 'string'"),
        ({"span": {"days": 1.5}}, "arguments.span.days: 1.5 is not of type 'integer'"),
        ({"span": {"days": True}}, "arguments.span.days: True is not of type 'integer'"),
        ({"marks": {"x": [0]}}, "arguments.marks.x[0]: 0 is not of type 'boolean'"),
        ({"last": []}, "arguments.last: [] is not"),
        ({"more": 1}, "arguments: Additional properties are not allowed"),
    ]
    for change, place in wrong:
        with pytest.raises(ToolCallError) as raised:
            parsed(tools, "plan", {**good, **change})
        assert place in str(raised.value)


class Kind(TypedDict):
    whole: NotRequired[int]
    real: NotRequired[float]
    yes: NotRequired[bool]
    maybe: NotRequired[int | None]
    mixed: NotRequired[int | bool]
    text: NotRequired[str | int]
    days: NotRequired[list[int]]
    near: NotRequired[Literal[1, 2]]


def order(kind: Kind) -> None: ...


COERCED = Tools.of([order])


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("whole", "3", 3),
        ("whole", "-12", -12),
        ("whole", "0", 0),
        ("whole", 3.0, 3),
        ("whole", -0.0, 0),
        ("real", "3", 3),
        ("real", "-0.5e-1", -0.05),
        ("yes", "true", True),
        ("yes", "false", False),
        ("maybe", "3", 3),
        ("maybe", 4.0, 4),
        ("mixed", "true", True),
        ("mixed", "7", 7),
        ("near", "2", 2),
    ],
)
def test_arguments_are_coerced_where_no_meaning_changes(key: str, written: object, value: object) -> None:
    (call,) = parsed(COERCED, "order", {"kind": {key: written, "days": [1]}})
    assert repr(call.arguments) == repr({"kind": {key: value, "days": [1]}})
    assert repr(call.coerced) == repr({f"arguments.kind.{key}": written})


def test_what_is_coerced_is_told_by_its_place() -> None:
    (call,) = parsed(COERCED, "order", {"kind": {"days": ["3", 4, 5.0], "text": "6", "real": 7.0, "maybe": None}})
    assert repr(call.arguments) == repr({"kind": {"days": [3, 4, 5], "text": "6", "real": 7.0, "maybe": None}})
    assert call.coerced == {"arguments.kind.days[0]": "3", "arguments.kind.days[2]": 5.0}


@pytest.mark.parametrize(
    ("key", "written"),
    [
        *(
            ("whole", each)
            for each in ("3.5", "3.0", " 3", "3 ", "+3", "03", "3e0", "0x3", "\u0663", "three", "", "true", "-", "1_0")
        ),
        *(("whole", each) for each in (3.5, 1e300, True, [3], "9" * 5000)),
        *(("real", each) for each in ("1e999", "NaN", "Infinity", ".5", "5.", "1,5", True)),
        *(("yes", each) for each in ("True", "yes", "1", 1, 0, 1.0, "")),
        *(("maybe", each) for each in ("null", "None", "")),
        *(("text", each) for each in (3.5, True, None)),
        ("near", "3"),
        ("days", "[1]"),
    ],
)
def test_what_could_mean_something_else_is_refused(key: str, written: object) -> None:
    with pytest.raises(ToolCallError, match=rf"do not fit its schema: arguments\.kind\.{key}"):
        parsed(COERCED, "order", {"kind": {key: written}})


@dataclass
class Cat:
    kind: Literal["cat"]
    lives: int


@dataclass
class Dog:
    kind: Literal["dog"]
    good: bool


def adopt(pet: Cat | Dog | None) -> None: ...


def test_a_union_is_coerced_in_the_branch_that_it_is_of() -> None:
    tools = Tools.of([adopt])
    for written, value in (({"kind": "cat", "lives": "9"}, 9), ({"kind": "dog", "good": "true"}, True)):
        (call,) = parsed(tools, "adopt", {"pet": written})
        assert list(call.arguments["pet"].values())[1] is value
        assert len(call.coerced) == 1
    with pytest.raises(ToolCallError):
        parsed(tools, "adopt", {"pet": {"kind": "cow", "lives": "9"}})


def test_a_recursive_schema_and_names_of_properties_are_coerced_as_well() -> None:
    tree: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"size": {"type": "integer"}, "more": {"$ref": "#"}},
        "propertyNames": {"type": "string", "maxLength": 4},
    }
    (call,) = parsed(Tools.of([{"name": "f", "parameters": tree}]), "f", {"more": {"more": {"size": 3.0}}})
    assert repr(call.arguments) == repr({"more": {"more": {"size": 3}}})
    odd = Tools.of([{"name": "f", "parameters": {"type": "object", "propertyNames": {"type": "integer"}}}])
    with pytest.raises(ToolCallError, match="'3' is not of type 'integer'"):
        parsed(odd, "f", {"3": 3})


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"x": "a\ud83d"}, "arguments.x"),
        ({"x": [{"y": "\udc00b"}]}, r"arguments\.x\[0\]\.y"),
        ({"\ud83d": 1}, "half a surrogate pair"),
    ],
)
def test_half_a_surrogate_pair_is_refused_in_the_call(arguments: dict[str, Any], place: str) -> None:
    with pytest.raises(ToolCallError, match=rf"call of 'f'.*{place}.*") as raised:
        parsed(F, "f", arguments)
    assert "half a surrogate pair" in str(raised.value)
    (whole,) = parsed(F, "f", {"x": "\U0001f680"})  # both halves
    assert whole.arguments == {"x": "\U0001f680"}


@pytest.mark.parametrize("mark", ["<think>", "<|channel>thought", "<seed:think>"])
@pytest.mark.parametrize("line", ["", "\n"])
def test_a_thought_that_the_prompt_opens_calls_nothing(mark: str, line: str) -> None:
    (closing,) = (end for opening, end in marks_of(HERMES + "<|channel>thought<channel|><seed:think></seed:think>")
                  if opening == mark)  # fmt: skip
    source = f"{HERMES}{{# {mark}{closing} #}}"
    for text, content, calls in (
        (f"I could {CALL} but must not.{closing}\n\nNo.", None, ()),
        (f"I use <tool_call> tags.{closing}\n\n{CALL}", f"I use <tool_call> tags.{closing}", (ROME,)),
        (f"ok{closing}{CALL}", f"ok{closing}", (ROME,)),
        (f"without end {CALL}", None, ()),
        (f'ok{closing}\n{{"name": "weather", "arguments": {{"city": "Rome"}}}}', f"ok{closing}", (ROME,)),
        (f"ok{closing}\n{mark}again {CALL}{closing} done", None, ()),
    ):
        assert F.parse(line + text, source, mark) == (line + text if content is None else content, calls)
    with pytest.raises(ToolCallError) as raised:
        F.parse(f"ok{closing}<tool_call>", source, mark)
    assert raised.value.text == f"ok{closing}<tool_call>"


@pytest.fixture(scope="module")
def specials() -> Tokenizer:
    """A tokenizer to which all marks are special tokens, which have no text."""
    marks = ["<think>", "</think>", "[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<|channel|>", "<|message|>"]
    marks += ["<|end|>", "<|other|>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {character: byte for byte, character in enumerate(sorted(BYTE_OF, key=BYTE_OF.__getitem__))}
    made = {"version": "1.0", "pre_tokenizer": level, "decoder": level,
            "added_tokens": [{"id": 256 + place, "content": mark, **flags} for place, mark in enumerate(marks)],
            "model": {"type": "BPE", "vocab": vocab, "merges": []}}  # fmt: skip
    return Tokenizer.from_json(json.dumps(made).encode(), None, False)


ANALYSIS = "<|channel|>analysis<|message|>"


@pytest.mark.parametrize(
    ("source", "begun", "written", "content", "calls"),
    [
        (HERMES, "", f"<think>I could {CALL}</think>No.", None, 0),
        (HERMES, "", f"<think>I could {CALL}</think>Yes.{CALL}", f"I could {CALL}Yes.", 1),
        (HERMES, "<think>", f"I could {CALL}</think>{CALL}", f"I could {CALL}", 1),
        (HERMES, "<think>", f"I could {CALL}", None, 0),
        (HERMES, "", f"Zürich <|other|>one\n{CALL} two{CALL}<|other|>", "Zürich one\ntwo", 2),
        (MISTRAL, "", '[TOOL_CALLS][{"name": "f", "arguments": {}}]', "", 1),
        (MISTRAL, "", 'I look. [TOOL_CALLS][{"name": "f", "arguments": {}}]', "I look.", 1),
        (MISTRAL, "", 'I look. [{"name": "f", "arguments": {}}]', None, 0),
        (HERMES + "{# " + ANALYSIS + "<|end|> #}", "", f"{ANALYSIS}I could {CALL}<|end|>No.", None, 0),
        (HERMES + "{# " + ANALYSIS + "<|end|> #}", ANALYSIS, f"ok<|end|>{CALL}", "ok", 1),
    ],
    ids=range(10),
)
def test_marks_that_are_special_tokens_are_read(
    specials: Tokenizer, source: str, begun: str, written: str, content: str | None, calls: int
) -> None:
    ids = specials.encode(written, special=True)
    text = specials.decode(ids)
    assert "tool_call>" not in text
    prompt = Prompt([], "", at_start=True, begun=begun)
    said, found = F.reading(specials, source, prompt)(text, ids)
    plain = text if content is None else specials.decode(specials.encode(content, special=True))
    assert (said, len(found)) == (plain if content is None else plain.strip(), calls)
    if calls and source is not MISTRAL:
        assert found[-1] == ROME
    # Without the ids, as where a stop string cut them, the text alone is read.
    assert F.reading(specials, source, prompt)(CALL, ()) == F.parse(CALL, source, begun)


def test_marks_that_a_template_does_not_state_are_text() -> None:
    text = f"[THINK]{CALL}[/THINK]"
    assert F.parse(text, HERMES)[1] == (ROME,)
    assert F.parse(text, HERMES + "[THINK][/THINK]") == (text, ())


def test_an_error_quotes_no_endless_value() -> None:
    with pytest.raises(ToolCallError) as raised:
        parsed(F, "weather", {"city": [0] * 10_000})
    assert "is not of type 'string'" in str(raised.value)
    assert len(str(raised.value)) < 400


@TEMPLATES
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 200_000,
        "[" * 500_000,
        '{"name": "f", "parameters": ' * 50_000,
        '[{"name": "f", "arguments": {"x": ' + "[" * 500_000,
        "[" + " " * 1_000_000 + "x",
        "{" + " " * 1_000_000 + '"name"' + " " * 1_000_000,
        '{"name": "' + "f" * 1_000_000,
        '{"name": "f", "parameters": {"x": ' + "9" * 1_000_000 + "}}",
        "<think>" * 200_000,
        CALL * 20_000,
        "<|python_tag|>" * 100_000,
        '{"name": "f", "parameters": {}};' * 50_000,
        "<think></think>" * 100_000,
        "```json\n" + " " * 1_000_000,
        "[TOOL_CALLS]<|tool_call|><tool_call>" * 50_000,
    ],
    ids=range(15),
)
def test_long_hostile_answers_end(source: str, text: str) -> None:
    """Each takes hours where the time grows with the square of the length."""
    found = read_or_refused(source, text)
    assert not isinstance(found, ToolCallError) or len(found.message) < 400


# Templates


@TEMPLATES
def test_known_templates_pass_the_check(source: str) -> None:
    F.check(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages }}{{ tools }}",
        "<tool_call>{name}<arg_key>{key}</arg_key><arg_value>{value}</arg_value></tool_call>{{ tc.arguments }}",
        "[TOOL_CALLS]{{ name }}{{ arguments|tojson }}",
        "<function=example_function_name>{\"example_name\": \"example_value\"}</function>",
    ],
)  # fmt: skip
def test_a_template_of_another_form_is_refused(source: str) -> None:
    with pytest.raises(SchemaError, match=r"no form that is known here.*Hermes, Llama 3, Mistral"):
        F.check(source)
    with pytest.raises(SchemaError):
        F.parse("Hi", source)


def test_tools_are_given_as_the_template_takes_them() -> None:
    assert F.given(USER, template_of(HERMES + "{{ tools }}{{ xml_tools }}")) == (USER, F.definitions, {})
    functions = [ANYTHING, WEATHER]
    assert F.given(USER, template_of(HERMES + "{{ xml_tools }}")) == (USER, None, {"xml_tools": functions})
    with_system = [{"role": "system", "content": "Be brief."}, *USER]
    for messages, content in ((with_system, "Be brief."), (USER, "")):
        changed, tools, variables = F.given(messages, template_of(PHI))
        assert (tools, variables, changed[1:]) == (None, {}, USER)
        assert changed[0] == {"role": "system", "content": content, "tools": json.dumps(functions)}
    assert with_system[0] == {"role": "system", "content": "Be brief."}
    # A template that takes no tools is refused where it is rendered.
    with pytest.raises(UsageError, match="knows no tools"):
        template_of(LLAMA).render(USER, tools=F.given(USER, template_of(LLAMA))[1])


def test_a_call_is_answered_in_the_form_that_templates_take() -> None:
    assert ROME.answered("21") == {"role": "tool", "name": "weather", "content": "21"}
    marked = ToolCall("f", {}, "call00001")
    told = {"role": "tool", "name": "f", "tool_call_id": "call00001"}
    assert marked.answered("") == {**told, "content": ""}
    assert marked.answered({"Zürich": [21, None]}) == {**told, "content": '{"Zürich": [21, null]}'}
    assert marked.answered(KeyError("Rome")) == {**told, "content": "Error: KeyError: 'Rome'"}
    with pytest.raises(UsageError, match="gave is of type set"):
        marked.answered({1})


def test_a_call_and_its_error_are_plain_data() -> None:
    plain = {"name": "f", "arguments": {"x": [1]}, "id": "a"}
    assert ToolCall("f", {"x": [1]}, "a").to_dict() == plain
    assert ToolCall("f", {"x": [1]}, "a", {"arguments.x[0]": "1"}).to_dict() == {
        **plain,
        "coerced": {"arguments.x[0]": "1"},
    }
    error = pickle.loads(pickle.dumps(ToolCallError("No.", text="raw", hint="Ask again.")))
    assert (str(error), error.text) == ("No. Ask again.", "raw")
    assert isinstance(error, EdgepackError)
    assert isinstance(error, ValueError)
    assert not isinstance(error, UsageError)


# Real templates and tokenizers


def of_case(folder: Path, name: str) -> str:
    cases = json.loads((folder / "llama.cpp-test-chat-template.json").read_text())["cases"]
    (source,) = [str(case["template_str"]) for case in cases if case["name"].startswith(name)]
    return source


NAMED = ToolCall("weather", {"city": 'Zürich "}]</tool_call>; <|python_tag|>'}, "call00001")
REAL = [
    ("Qwen2.5", "<|im_end|>\n", 2),
    ("Qwen3", "<|im_end|>\n", 2),
    ("Llama-3.2", "<|eot_id|>", 1),
    ("Mistral-Large-Instruct-2407", "</s>", 2),
    ("Mistral-Nemo-Instruct-2407", "</s>", 2),
]


@pytest.mark.shared
@pytest.mark.parametrize(("model", "end", "count"), REAL)
def test_calls_that_real_templates_write_are_read_back(shared: Path, model: str, end: str, count: int) -> None:
    folder = shared / "chat-templates"
    source = of_case(folder, model) if model.startswith("Mistral") else real_template(model, folder)
    calls = [NAMED, ToolCall("f", {"a": [1, {"b": None}], "c": 1.5}, "call00002")][:count]
    text = written(source, calls, end=end, content="" if model == "Llama-3.2" else "I look.")
    content, found = F.parse(text, source)
    assert [(call.name, call.arguments) for call in found] == [(call.name, call.arguments) for call in calls]
    if model.startswith("Mistral"):
        assert [call.id for call in found] == ["call00001", "call00002"]
    if model.startswith("Qwen"):
        assert content.endswith("I look.")
    # The conversation goes on with the result.
    result = calls[0].answered("21 degrees")
    asked = [*USER, assistant("", calls[:1]), result]
    assert "21 degrees" in template_of(source).render(asked, tools=F.definitions)


@pytest.mark.shared
def test_real_templates_take_the_definitions(shared: Path) -> None:
    folder = shared / "chat-templates"
    granite = of_case(folder, "ibm-granite")
    for source in (*(real_template(name, folder) for name in ("Qwen2.5", "Qwen3", "Llama-3.2", "Phi-4-mini")), granite):
        F.check(source)
        messages, tools, variables = F.given(USER, template_of(source))
        prompt = template_of(source).render(messages, tools=tools, variables=variables)
        assert '"weather"' in prompt
        assert '"city"' in prompt
    said = json.dumps([{"name": "weather", "arguments": {"city": "Rome"}}])
    text = template_of(granite).render([*USER, {"role": "assistant_tool_call", "content": said}], tools=[WEATHER])
    assert F.parse(text.rpartition("assistant<|end_of_role|>")[0].rpartition("<|end_of_role|>")[2].partition("<|end_of_text|>")[0], granite)[1] == (ROME,)  # fmt: skip  # noqa: E501
    for name in ("gemma-2-it", "Phi-3.5-mini"):
        with pytest.raises(SchemaError, match="no form that is known"):
            F.check(real_template(name, folder))


@pytest.mark.shared
def test_marks_that_are_special_tokens_leave_no_text(shared: Path) -> None:
    def told(name: str, text: str) -> str:
        tokenizer = Tokenizer.from_json((shared / "tokenizers" / name / "tokenizer.json").read_bytes(), None, False)
        return tokenizer.decode(tokenizer.encode(text, special=True))

    folder = shared / "chat-templates"
    assert F.parse(told("qwen3", f"{CALL}<|im_end|>"), real_template("Qwen3", folder)) == ("", (ROME,))
    marked = '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}<|eom_id|>'
    assert "<|" not in told("llama-3.2", marked)
    assert F.parse(told("llama-3.2", marked), real_template("Llama-3.2", folder)) == ("", (ROME,))
