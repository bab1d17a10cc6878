"""``tool_choice``: an answer that has to be a call is one in each format, whatever a model invents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import pytest

from edgepack import Model, fake, fake_facts
from edgepack.errors import SchemaError, UsageError
from edgepack.text.added import Added
from edgepack.text.tables import Tables
from edgepack.text.tool_formats import FORMATS, Format

HI = [{"role": "user", "content": "Hi"}]
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"kind": {"$ref": "#/$defs/kind"}},
    "required": ["kind"],
    "additionalProperties": False,
    "$defs": {"kind": {"enum": ["oak", "elm"]}},
}
TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "parameters": PLACE},
    {"type": "function", "function": {"name": "plant.tree", "parameters": TREE}},
]
HOT = {"temperature": 2.0, "top_k": 0, "top_p": 1.0}


def taught(form: Format, **options: Any) -> Model:
    """Return a model whose template teaches a format and shows its tools."""
    teaches = f"{{# {chr(10).join(form.markers)} #}}{{{{ tools | length if tools }}}}"
    return fake.model(template=teaches + fake._TEMPLATE, **options)


def thinker(form: Format, thinks: str) -> Model:
    return taught(form, thinks=thinks, says="No call.")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.name} {form.markers[0]}")
def test_an_answer_that_has_to_be_a_call_is_one(form: Format) -> None:
    with taught(form) as model:
        for choice, seeds in (("weather", 2), ({"name": "plant.tree"}, 1), ("required", 6)):
            seen = set()
            for seed in range(seeds):
                result = model.chat(HI, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=2000, **HOT)
                (call,) = result.tool_calls
                assert (result.finish_reason, result.text, call.coerced) == ("stop", "", {})
                assert call.arguments.keys() == ({"city", "days"} if call.name == "weather" else {"kind"})
                seen.add(call.name)
            assert model._repeat(result.repro, result.sampling).token_ids == result.token_ids
            assert seen == {"weather": {"weather"}, "required": {"weather", "plant.tree"}}.get(
                str(choice), {"plant.tree"}
            )


@pytest.mark.parametrize("thinks", ["A thought.", ""], ids=["thinks", "answers at once"])
def test_the_thought_before_a_call_is_free(thinks: str) -> None:
    with thinker(FORMATS[0], thinks) as model:
        result = model.chat(HI, tools=TOOLS, tool_choice="weather", max_tokens=300)
        assert [call.name for call in result.tool_calls] == ["weather"]
        assert (result.reasoning or "") == thinks
        assert model._repeat(result.repro, result.sampling).token_ids == result.token_ids
        short = model.chat(HI, tools=TOOLS, tool_choice="weather", thinking_tokens=3, max_tokens=300)
        assert [call.name for call in short.tool_calls] == ["weather"]
        assert len((short.reasoning or "").encode()) <= 3


def named(mark: str) -> Tables:
    """Return the fake's vocabulary with the mark of a call in the place of its first special token."""
    tables = fake_facts.tables()
    texts = [*(bytes(tables.texts)[begin:end] for begin, end in _spans(tables)[:-1]), mark.encode()]
    rest = json.loads(tables.rest)
    rest["added_tokens"][1]["content"] = mark
    added = [tables.front.added[0], Added(mark, fake_facts.START, special=True)]
    ends = np.array([*accumulate(map(len, texts))], "<u4").tobytes()
    return msgspec.structs.replace(
        tables,
        rest=json.dumps(rest),
        texts=memoryview(b"".join(texts)),
        ends=memoryview(ends).cast("I"),
        front=msgspec.structs.replace(tables.front, added=added),
    )


def _spans(tables: Tables) -> Sequence[tuple[int, int]]:
    return list(zip([0, *tables.ends], tables.ends, strict=False))


@pytest.mark.parametrize("name", ["Mistral", "Granite", "Phi-4-mini"])
def test_a_mark_that_is_a_special_token_is_written_as_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = next(each for each in FORMATS if each.name == name)
    tables = named(form.opening)
    monkeypatch.setattr(fake_facts, "tables", lambda: tables)
    with taught(form) as model:
        result = model.chat(HI, tools=TOOLS, tool_choice="required", max_tokens=2000, **HOT)
        assert result.token_ids[0] == fake_facts.START
        assert len(result.tool_calls) == 1
        assert result.text == ""


def test_none_shows_the_tools_and_calls_nothing() -> None:
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>'
    with taught(FORMATS[0], says=said) as model:
        free = model.chat(HI, tools=TOOLS)
        assert [call.name for call in free.tool_calls] == ["weather"]
        assert model.chat(HI, tools=TOOLS, tool_choice="auto").tool_calls == free.tool_calls
        silent = model.chat(HI, tools=TOOLS, tool_choice="none")
        assert (silent.text, silent.tool_calls) == (said, ())
        assert silent.repro.prompt_ids == free.repro.prompt_ids


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.name} {form.markers[0]}")
def test_auto_leaves_a_text_as_it_is(form: Format) -> None:
    with taught(form, says="Hello.") as model:
        assert model.chat(HI, tools=TOOLS, tool_choice="auto").text == "Hello."


def test_the_first_call_alone() -> None:
    calls = [
        f'<tool_call>{{"name": "weather", "arguments": {{"city": "{city}", "days": 1}}}}</tool_call>' for city in "AB"
    ]
    with taught(FORMATS[0], says="\n".join(calls)) as model:
        assert [call.arguments["city"] for call in model.chat(HI, tools=TOOLS).tool_calls] == ["A", "B"]
        one = model.chat(HI, tools=TOOLS, parallel_tool_calls=False)
        assert [call.arguments["city"] for call in one.tool_calls] == ["A"]
        with pytest.raises(UsageError, match="without tools"):
            model.chat(HI, parallel_tool_calls=False)
        assert model.count_tokens(HI, tools=TOOLS) == one.usage.prompt_tokens


def test_what_the_length_cuts_is_no_call() -> None:
    begun = '<tool_call>\n{"name": "say", "arguments": {"x": "'
    say = {"name": "say", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
    with taught(FORMATS[0], says=begun + "a" * 500) as model:
        with pytest.raises(SchemaError, match="what stands before it 12"):
            model.chat(HI, tools=TOOLS, tool_choice="weather", max_tokens=20)
        result = model.chat(HI, tools=[say], tool_choice="say", max_tokens=80)
        assert (result.finish_reason, result.tool_calls) == ("length", ())
        assert result.text == begun + "a" * (80 - len(begun) - 3) + '"}}'


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tool_choice": "required"}, "without tools"),
        ({"tools": TOOLS, "tool_choice": "train"}, "'train', which is no tool"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "train"}}}, "'train', which is no"),
        ({"tools": TOOLS, "tool_choice": {}}, "names no tool"),
        ({"tools": TOOLS, "tool_choice": 3}, "of type int"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "regex was given beside a tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "stop": "a"}, "stop was given beside"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: Any, reason: str) -> None:
    with taught(FORMATS[0]) as model:
        with pytest.raises(UsageError, match=reason) as caught:
            model.chat(HI, **options)
        assert caught.value.hint


def test_a_schema_that_cannot_be_enforced_is_refused_by_its_place() -> None:
    broken = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}}
    with taught(FORMATS[0]) as model, pytest.raises(SchemaError, match=r"tool_choice: a call cannot be bound: .*not"):
        model.chat(HI, tools=[broken], tool_choice="required")
