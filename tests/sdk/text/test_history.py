"""Earlier messages as clients send them: the same prompt as in the form that the template reads, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_templates import all_templates

from edgepack import fake
from edgepack.errors import EdgepackError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.history import CallForm, form_of, told

ARGUMENTS = {"city": "Zürich", "days": [1, 2.5, None, True], "of": {"a": 'a "b"\n'}}

# How templates take arguments and contents, each as small as it can be.
OBJECT = "{{ c.function.arguments | tojson }}"
TEXT = "{{ '' + c.function.arguments }}"
PRINTED = "{{ c.function.arguments }}"
EITHER = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}"  # noqa: E501
EACH = "{% for key, value in c.function.arguments.items() %}<{{ key }}>{{ value }}</{{ key }}>{% endfor %}"
ANY = "{{ m.content or '' }}"
EMPTY = "{% if '</think>' in m.content %}!{% endif %}{{ m.content }}"
NONE = "{% if m.content is none %}CALLS{% else %}{{ m.content }}{% endif %}"


def source_of(arguments: str, content: str) -> str:
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }} " + arguments + ";{% endfor %}"
    whole = content.replace("CALLS", calls) if "CALLS" in content else content + calls
    return (
        "{% for m in messages %}[{{ m.role }}]"
        + whole
        + "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )


def talk(arguments: Any, *, content: Any = "", **more: Any) -> list[dict[str, Any]]:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": content, "tool_calls": [call], **more},
        {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "rain"},
    ]


def prompt(model: Any, messages: Any) -> str:
    return "".join(
        {256: "<end>", 257: "<start>"}.get(id) or bytes([id]).decode("latin-1")
        for id in model.chat(messages, max_tokens=1).repro.prompt_ids
    )


@pytest.mark.parametrize(
    ("arguments", "content", "form"),
    [
        (OBJECT, ANY, CallForm()),
        (OBJECT, EMPTY, CallForm()),
        (EITHER, ANY, CallForm()),
        (EACH, ANY, CallForm()),
        (TEXT, ANY, CallForm(as_text=True)),
        (PRINTED, ANY, CallForm(as_text=True)),
        (TEXT, NONE, CallForm(as_text=True, null_content=True)),
        (OBJECT, NONE, CallForm(null_content=True)),
        ("", ANY, CallForm()),
        ("{{ raise_exception('no') }}", ANY, CallForm()),
    ],
    ids=range(10),
)
def test_a_call_reaches_each_template_in_the_form_that_it_reads(arguments: str, content: str, form: CallForm) -> None:
    source = source_of(arguments, content)
    assert form_of(ChatTemplate(source, bos_token="", eos_token="", date=None)) == form
    if "raise" in arguments:
        return
    with fake.model(says="x", template=source) as model:
        text = json.dumps(ARGUMENTS)
        sent = [talk(ARGUMENTS), talk(text), talk(ARGUMENTS, content=None), talk(text, content=None, refusal=None)]
        found = {prompt(model, each) for each in sent}
    (one,) = found  # the same, however it is sent
    assert "weather" in one
    assert ("Z" in one) is bool(arguments)
    if arguments not in ("", EACH):
        assert json.dumps(ARGUMENTS, ensure_ascii=False).encode().decode("latin-1") in one


def test_fields_that_are_null_are_not_there() -> None:
    source = "{% for m in messages %}{{ m }}{% endfor %}"
    with fake.model(says="x", template=source) as model:
        said = {"role": "user", "content": "Hi", "name": None, "refusal": None, "function_call": None}
        assert prompt(model, [said]) == str({"role": "user", "content": "Hi"})
        answer = {"role": "assistant", "content": "Ho", "tool_calls": None, "audio": None}
        for none in (answer, {**answer, "tool_calls": []}):
            assert str({"role": "assistant", "content": "Ho"}) in prompt(model, [said, none, said])


def test_the_result_of_a_tool_gets_the_name_of_its_call() -> None:
    messages = talk(ARGUMENTS)
    del messages[2]["name"]
    assert told(messages, CallForm(), ())[2]["name"] == "weather"
    messages[2]["tool_call_id"] = "another"
    assert "name" not in told(messages, CallForm(), ())[2]


def test_calls_without_arguments_or_in_the_inner_form_alone() -> None:
    for arguments in (None, "", "{}", {}):
        (call,) = told(talk(arguments), CallForm(), ())[1]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": {}}
    messages = talk({})
    messages[1]["tool_calls"] = [{"name": "weather", "arguments": '{"a": 1}'}]
    assert told(messages, CallForm(), ())[1]["tool_calls"] == [{"name": "weather", "arguments": {"a": 1}}]


@pytest.mark.parametrize(
    ("calls", "place"),
    [
        ({}, r"messages\[1\]\.tool_calls is of type dict"),
        ([3], r"messages\[1\]\.tool_calls\[0\] has no function with a name"),
        ([{"function": {"arguments": {}}}], r"messages\[1\]\.tool_calls\[0\] has no function with a name"),
        *(
            ([{"function": {"name": "f", "arguments": arguments}}], r"tool_calls\[0\]\.function\.arguments is no JSON")
            for arguments in ('{"city": "Ro', "[1]", "3", "null", [1], 3, "[" * 100_000, "{'a': 1}")
        ),
        ([{"name": "f", "arguments": "{"}], r"tool_calls\[0\]\.arguments is no JSON"),
        ([{"name": "f", "arguments": '{"a": "\\ud83d"}'}], r"arguments\.a has half a surrogate pair at index 0"),
    ],
    ids=range(13),
)
def test_what_is_no_call_is_named(calls: Any, place: str) -> None:
    messages = talk({})
    messages[1]["tool_calls"] = calls
    with fake.model(says="x") as model, pytest.raises(UsageError, match=place):
        model.chat(messages)


@pytest.mark.parametrize("place", ["content", "name"])
def test_half_a_surrogate_pair_is_named_where_it_stands(place: str) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hi", place: "a\ud83d"}]
    with (
        fake.model(says="x") as model,
        pytest.raises(UsageError, match=rf"messages\[0\]\.{place} has half a surrogate"),
    ):
        model.chat(messages)


def test_a_value_without_end_is_named() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with fake.model(says="x") as model, pytest.raises(UsageError, match=r"messages\[0\]\.extra has too many levels"):
        model.chat([{"role": "user", "content": "Hi", "extra": deep}])


def test_a_developer_is_the_system_unless_the_template_knows_one() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with fake.model(says="x") as model:
        assert prompt(model, messages) == prompt(model, [{**messages[0], "role": "system"}, messages[1]])
    assert told(messages, CallForm(), ("developer", "user"))[0]["role"] == "developer"


@pytest.mark.shared
def test_calls_are_the_same_in_every_real_template(shared: Path) -> None:
    printing = set()
    for name, source in all_templates(shared / "chat-templates").items():
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2024-07-26")
        form, found = form_of(template), set()
        for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
            for content in ("", None):
                try:
                    found.add(template.render(told(talk(arguments, content=content), form, ())))
                except EdgepackError as error:
                    found.add(str(error))
        assert len(found) == 1, name
        if json.dumps(ARGUMENTS, ensure_ascii=False) in found.pop():
            printing.add(name)
    assert printing >= {"Qwen3", "Llama-3.2", "data/qwen2.5"}
    assert len([name for name in printing if name.startswith("Mistral")]) == 2
