"""Chat templates: what transformers renders, in a sandbox, with messages that are checked and a date that is pinned."""

from __future__ import annotations

import json
import locale
from pathlib import Path
from typing import Any

import pytest
from real_templates import real_template, vectors_of

from edgepack.errors import BundleError, UsageError
from edgepack.text import chat
from edgepack.text.chat import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: Any = USER, **options: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", date=None).render(messages, **options)


def test_the_template_sees_messages_and_names() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    assert render(source) == "<s>[user]Hi</s>"


def test_blocks_are_trimmed_as_transformers_does() -> None:
    source = "A\n    {% if true %}\nB\n    {% endif %}\nC\n"
    assert render(source) == "A\nB\nC"


def test_the_generation_prompt_is_asked_for() -> None:
    source = "x{% if add_generation_prompt %}!{% endif %}"
    assert render(source) == "x!"
    assert render(source, add_generation_prompt=False) == "x"


def test_loop_controls_work() -> None:
    assert render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "023"  # fmt: skip  # noqa: E501


def test_the_generation_tag_renders_its_body_in_a_scope_of_its_own() -> None:
    source = (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}<{{ messages[0].content }}{{ x }}>{% endgeneration %}{{ x }}"
    )
    assert render(source) == "<Hi2>1"


def test_tojson_keeps_letters_and_signs() -> None:
    messages = [{"role": "user", "content": "é <b> & '"}]
    assert render("{{ messages[0]|tojson }}", messages) == '{"role": "user", "content": "é <b> & \'"}'
    assert render("{{ {'b': 1, 'a': [2]}|tojson(indent=1, sort_keys=true) }}") == '{\n "a": [\n  2\n ],\n "b": 1\n}'


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"x": ["é", 1.5, None, True]}}}


def test_tools_reach_the_template_as_they_are() -> None:
    source = "{{ tools is none }}{% for t in tools or [] %} {{ t|tojson }}{% endfor %}"
    assert render(source) == "True"
    assert render(source, tools=[TOOL]) == f"False {json.dumps(TOOL, ensure_ascii=False)}"


def test_tools_and_variables_that_the_template_does_not_read_are_refused() -> None:
    with pytest.raises(UsageError, match="knows no tools"):
        render("{{ messages }}", tools=[TOOL])
    source = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}{{ range(2)|list }}"
    assert render(source, variables={"enable_thinking": False}) == "False[0, 1]"
    assert render(source) == "[0, 1]"
    for name in ("enable_thinkin", "messages", "range", "bos_token"):
        with pytest.raises(UsageError, match=rf"reads no variable '{name}'\. It reads: enable_thinking\."):
            render(source + "{{ bos_token }}{{ messages }}", variables={name: True})


@pytest.mark.parametrize(
    ("tools", "place"),
    [
        (TOOL, "tools is of type dict"),
        ("f", "tools is of type str"),
        ([len], r"tools\[0\] is of type builtin_function_or_method"),
        ([{"f": {"x": {1}}}], r"tools\[0\]\.f\.x is of type set"),
        ([{"f": {1: 2}}], r"tools\[0\]\.f has a key of type int"),
    ],
)
def test_wrong_tools_are_named(tools: Any, place: str) -> None:
    with pytest.raises(UsageError, match=place):
        render("{{ tools }}", tools=tools)


def test_a_call_of_a_tool_needs_no_content() -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    source = "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0].function.arguments|tojson }}{% endfor %}"
    assert render(source, [{"role": "assistant", "tool_calls": calls}]) == '{"x": 1}'
    assert render(source, [{"role": "assistant", "content": None, "tool_calls": calls}]) == 'None{"x": 1}'


def test_a_template_meets_no_object_of_the_application() -> None:
    class Secret(str):
        key = "secret"

    messages = [{"role": "user", "content": Secret("Hi"), "extra": (1, 2)}]
    assert render("{{ messages[0].content.key }}{{ messages[0].extra }}", messages) == "[1, 2]"


def test_a_prompt_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_CHARACTERS", 1000)
    assert len(render("{{ 'x' * 1000 }}")) == 1000
    with pytest.raises(BundleError, match="more than 1,000 characters"):
        render("{% for i in range(1001) %}x{% endfor %}")


def test_the_names_that_a_template_reads() -> None:
    source = (
        "{% set a = 1 %}{{ a }}{% if tools %}{{ strftime_now('%Y') }}{% endif %}{% for m in messages %}{% endfor %}"
    )
    template = ChatTemplate(source, bos_token="", eos_token="", date=None)
    assert template.reads == {"tools", "strftime_now", "messages"}


def test_the_clock_is_the_pinned_day() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y|%A %a %B %p %%a %H') }}", bos_token="", eos_token="", date="2024-07-06"
    )
    assert template.render(USER) == "06 Jul 2024|Saturday Sat July AM %a 00"
    assert template.render(USER, date="2031-12-01") == "01 Dec 2031|Monday Mon December AM %a 00"


def test_the_day_is_english_in_every_locale() -> None:
    before = locale.setlocale(locale.LC_TIME)
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8"):
        try:
            locale.setlocale(locale.LC_TIME, name)
        except locale.Error:
            continue
        try:
            assert render("{{ strftime_now('%b') }}", date="2024-05-01") == "May"
        finally:
            locale.setlocale(locale.LC_TIME, before)


def test_without_a_day_the_template_takes_its_own() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}fixed{% endif %}"
    assert render(source) == "fixed"
    with pytest.raises(BundleError, match=r"strftime_now.*Name the day"):
        render("{{ strftime_now('%Y') }}")
    with pytest.raises(UsageError, match="'today' is not a day"):
        render(source, date="today")


def test_a_template_that_refuses_gives_its_reason() -> None:
    with pytest.raises(UsageError, match=r"refuses the messages: Roles must alternate\."):
        render("{{ raise_exception('Roles must alternate.') }}")


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages is not a list"),
        ("Hi", "messages is not a list"),
        ({"role": "user", "content": "Hi"}, "messages is not a list"),
        (["Hi"], r"messages\[0\] is of type str"),
        ([*USER, {"role": "user"}], r"messages\[1\]\.content is missing"),
        ([{"content": "Hi"}], r"messages\[0\]\.role is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is of type NoneType"),
        ([{"role": "user", "content": {"type": "text", "text": "Hi"}}], r"messages\[0\]\.content is of type dict"),
        ([{"role": "user", "content": []}], r"messages\[0\]\.content is an empty list"),
        ([{"role": "user", "content": ["Hi"]}], r"messages\[0\]\.content\[0\] is of type str"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content\[0\]\.text is not a string"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\.content\[1\] is a part of the type 'image_url'\. The model reads text alone",
        ),
        ([{"role": "user", "content": [{"text": "a"}]}], r"messages\[0\]\.content\[0\] is a part of the type None"),
        ([{"role": "user", "content": "Hi", 3: "x"}], r"messages\[0\] has a key of type int"),
        ([{"role": "user", "content": "Hi", "image": b""}], r"messages\[0\]\.image is of type bytes"),
    ],
)
def test_wrong_messages_are_named(messages: object, place: str) -> None:
    with pytest.raises(UsageError, match=place):
        render("x", messages)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.text }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_misbehaves_is_stopped(source: str) -> None:
    with pytest.raises(BundleError, match=r"chat_template\.jinja fails"):
        render(source)


def test_a_template_that_does_not_compile_names_the_line() -> None:
    with pytest.raises(BundleError, match=r"chat_template\.jinja, line 2: "):
        render("a\n{% if %}")


def test_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    render("{% set _ = messages[0].update %}x", messages)
    assert messages == USER


@pytest.mark.shared
def test_renderings_of_real_templates(shared: Path) -> None:
    folder = shared / "chat-templates"
    cases = json.loads((folder / "small-models-jinja2-renderings.json").read_text())["cases"]
    for case in cases:
        template = ChatTemplate(
            real_template(case["model"], folder),
            bos_token=case["bos_token"],
            eos_token=case["eos_token"],
            date="2024-07-26",
        )
        if case["error"]:
            with pytest.raises(UsageError, match=case["error"]):
                template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"])
        else:
            text = template.render(case["messages"], add_generation_prompt=case["add_generation_prompt"])
            assert text == case["rendered"]
    assert len(cases) == 56


@pytest.mark.shared
def test_vectors_of_other_engines(shared: Path) -> None:
    folder = shared / "chat-templates"
    # The others give the tools to the template in a form that its engine makes of them.
    applicable = [vector for vector in vectors_of(folder) if vector.get("jinja2_equal")]
    for vector in applicable:
        template = ChatTemplate(
            vector["template"], bos_token=vector["bos_token"], eos_token=vector["eos_token"], date=None
        )
        text = template.render(
            vector["messages"], tools=vector["tools"], add_generation_prompt=vector["add_generation_prompt"]
        )
        assert text == vector["expected"], vector["test"]
    document = json.loads((folder / "llama.cpp-test-chat-template.json").read_text())
    equal = [case for case in document["cases"] if case["jinja2_equal"]]
    for case in equal:
        template = ChatTemplate(
            case["template_str"], bos_token=case["bos_token"], eos_token=case["eos_token"], date=None
        )
        expected = case["expected_output_jinja"] or case["expected_output"]
        assert template.render(document["conversation"]) == expected, case["name"]
    assert (len(applicable), len(equal)) == (9, 26)


# Contents


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
LOOP = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"


def test_parts_are_one_text_of_as_many_lines() -> None:
    source = "{% for m in messages %}{{ m.content }};{% endfor %}"
    assert render(source, [{"role": "user", "content": PARTS}, {"role": "user", "content": "x"}]) == "one\ntwo;x;"


def test_a_content_is_handed_in_the_form_that_the_template_reads() -> None:
    template = ChatTemplate(LOOP, bos_token="", eos_token="", date=None, parts=["user"])
    for content in ("one\ntwo", PARTS):
        messages = [{"role": "user", "content": content}, {"role": "system", "content": ""}]
        assert template.render(messages) == "<user>one\ntwo|<system>"


def test_a_message_is_printed_whole_in_the_order_of_its_fields() -> None:
    message = {"content": "a", "role": "user", "name": "b"}
    assert render("{{ messages[0] | tojson }}", [message]) == json.dumps(message)
    called = {"role": "assistant", "tool_calls": [{"id": "x"}], "content": None}
    assert render("{{ messages[0] | tojson }}", [called]) == json.dumps(called)
    del called["content"]
    assert render("{{ messages[0] | tojson }}", [called]) == json.dumps(called)


def test_a_template_for_tools_names_its_own_file() -> None:
    file = "additional_chat_templates/tool_use.jinja"
    names: dict[str, Any] = {"bos_token": "", "eos_token": "", "date": None}
    with pytest.raises(BundleError, match=rf"^{file}, line 1"):
        ChatTemplate("{% if %}", file=file, **names)
    other = ChatTemplate("{{ 1 / 0 }}", file=file, **names)
    with pytest.raises(BundleError, match=rf"^{file} fails"):
        other.render(USER)
    template = ChatTemplate("{{ messages[0].content }}", tool_use=other, **names)
    assert (template.for_tools, other.for_tools) == (other, other)
