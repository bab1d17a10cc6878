"""Golden vectors: the battery in a child process with limits, what a bundle records of it, and transformers' word."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from models import make_llama
from real_templates import vectors_of as vectors_in
from text_side import CHAT_TEMPLATE, SPECIAL_TOKENS

from edgepack.bundle.manifest import Chat, Date
from edgepack.errors import ProofError, SourceError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.marks import Marked
from edgepack.text.opening import special_tokens
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import families
from edgepack_packager.proof import tokens
from edgepack_packager.recipe import Recipe
from edgepack_packager.text import golden, read_text, render
from edgepack_packager.text.battery import CONVERSATIONS, DAY, TEXTS
from edgepack_packager.text.files import TEMPLATE
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.render import Job, arrive, battery
from edgepack_packager.text.side import Text

FIRST = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_conversation_is_asked_for_where_the_template_has_a_use_for_it() -> None:
    always = [asked.name for asked in CONVERSATIONS if not asked.needs]
    assert list(battery(FIRST, "", "", DAY).answers) == always
    assert len(always) == 10
    assert {asked.name for asked in CONVERSATIONS if "tools" in asked.needs} == {
        "tools",
        "tools and system",
        "tool call",
    }
    tools = battery(FIRST + "{{ tools }}", "", "", DAY).answers
    assert list(tools) == [asked.name for asked in CONVERSATIONS if asked.needs <= {"tools"}]
    thinking = battery(FIRST + "{{ enable_thinking }}", "", "", DAY).answers
    assert (thinking["thinking"].text or "").endswith("True")
    assert (thinking["no thinking"].text or "").endswith("False")


def test_a_refusal_is_an_answer() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + FIRST
    answers = battery(source, "", "", DAY).answers
    assert answers["system"].refusal == "The chat template refuses the messages: No system."
    assert answers["system"].text is None
    assert answers["user"].text == CONVERSATIONS[0].messages[0]["content"]


def stopped(source: str, reason: str) -> None:
    """A template is stopped for this reason, which names the conversation."""
    with pytest.raises(SourceError, match=rf"chat_template\.jinja {reason} on the conversation 'user'\."):
        battery(source, "", "", DAY)
    armed = "{% if messages[0].role == 'system' %}" + source + "{% endif %}"
    with pytest.raises(SourceError, match=rf"chat_template\.jinja {reason} on the conversation 'system'\."):
        battery(armed, "", "", DAY)


def test_a_template_that_takes_all_time_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "CPU_SECONDS", 1)
    doubled = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    stopped(doubled, "runs for more than 1 s")


def test_a_template_that_takes_all_memory_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "MEMORY_MIB", 160)
    stopped("{{ ('x' * 10**8) ~ ('x' * 10**8) }}", "needs more than 160 MiB")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ '%9000000000d' % 1 }}",
        "{% set n = namespace(a='xx') %}{% for i in range(40) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    ],
)
def test_a_template_that_spends_too_much_is_stopped_and_named(source: str) -> None:
    stopped(source, "takes more time or memory than a template may")


def test_a_template_that_does_not_compile_is_named() -> None:
    with pytest.raises(SourceError, match=r"chat_template\.jinja, line 2: "):
        battery("a\n{% if %}", "", "", DAY)
    with pytest.raises(SourceError, match="recursion"):
        battery("{{ " + "(" * 3000 + ")" * 3000 + "}}", "", "", DAY)


def test_a_child_that_dies_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "MEMORY_MIB", 1)
    with pytest.raises(SourceError, match="while it compiles"):
        battery(FIRST + "{# another #}", "", "", DAY)


# What a bundle records


def source_of(folder: Path, template: str = CHAT_TEMPLATE, **config: object) -> Text:
    make_llama(folder)
    (folder / "chat_template.jinja").write_text(template)
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | config))
    fields = json.loads((folder / "config.json").read_text())
    text = read_text(folder, fields, families.describe(fields))
    assert text is not None
    return text


def vectors_of(text: Text, date: str | None = None) -> Vectors:
    tokenizer = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    return golden.vectors(text, tokenizer, date)


def chat_of(text: Text, date: str | None = None) -> Chat:
    chat = vectors_of(text, date).chat
    assert chat is not None
    return chat


def test_a_golden_is_what_the_template_writes_and_the_tokenizer_gives(tmp_path: Path) -> None:
    text = source_of(tmp_path)
    chat = chat_of(text)
    assert chat.roles == ["assistant", "system", "user"]
    by_name = {one.name: one for one in chat.goldens}
    assert by_name["user"].text == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert by_name["user"].ids[0] == 1
    assert by_name["user"].ids.count(2) == 1
    assert by_name["assistant last"].text.endswith("The answer is five.<|im_end|>\n")
    assert "\t" in by_name["code"].text
    assert "👩🏽" in by_name["unicode"].text


WITH_TOOLS = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMING = ["names of special tokens", "names in a system prompt", "names in tools"]


def test_names_of_special_tokens_in_what_is_said_are_recorded_as_text(tmp_path: Path) -> None:
    text = source_of(tmp_path, WITH_TOOLS)
    tokenizer = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    found = golden.vectors(text, tokenizer)
    assert found.chat is not None
    named = [one for one in found.chat.goldens if one.name in NAMING]
    assert [one.name for one in named] == NAMING
    for one in named:
        controls = [id for id in one.ids if id in tokenizer.special_ids]
        assert controls == [1, 2] * len(one.messages) + [1]
        assert all(one.text.count(name) > 3 for name in SPECIAL_TOKENS)
    assert [case.text for case in tokens.cases(found, tokenizer) if case.text in {one.text for one in named}] == []
    others = [one for one in found.chat.goldens if one.name not in NAMING]
    assert all(one.ids == tokenizer.encode(one.text, bos=False, special=True) for one in others)


def test_a_template_whose_control_tokens_cannot_be_told_from_words_is_refused(tmp_path: Path) -> None:
    unseen = "{% for m in messages %}{{ '<|im_start|>%s\n%s<|im_end|>' % (m.role, m.content) }}{% endfor %}"
    with pytest.raises(SourceError, match=r"cannot be followed, in the conversation 'user'.*Write each of them out"):
        vectors_of(source_of(tmp_path, unseen))


def test_names_that_are_parsed_fail_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Marked, "forged", lambda self, name, start, end: iter(()))
    with pytest.raises(
        ProofError, match=r"said in the conversation 'names of special tokens' makes the control tokens"
    ):
        vectors_of(source_of(tmp_path))


def test_a_role_that_is_not_printed_is_not_known(tmp_path: Path) -> None:
    silent = "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content|trim }}\n{% endfor %}"
    assert chat_of(source_of(tmp_path, silent)).roles == ["assistant", "user"]


def test_tools_make_a_role(tmp_path: Path) -> None:
    chat = chat_of(source_of(tmp_path, FIRST + "{{ tools|tojson }}"))
    assert chat.roles == ["assistant", "system", "tool", "user"]
    call = next(one for one in chat.goldens if one.name == "tool call")
    assert call.tools is not None
    assert "get_weather" in call.text


IN_PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def test_a_template_that_reads_parts_is_handed_parts(tmp_path: Path) -> None:
    """Of a string it prints nothing, or nothing but the roles: no golden may be of that."""
    chat = chat_of(source_of(tmp_path, IN_PARTS))
    assert (chat.roles, chat.parts) == (["assistant", "system", "user"], ["assistant", "system", "user"])
    assert chat.features == ["chat_parts"]
    first = chat.goldens[0]
    assert first.messages == [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    assert first.text == "[user]What is the capital of France?"


@pytest.mark.parametrize(
    "body", ["", "{{ m.content | upper }}", "{% if m.role == 'system' %}{{ m.content }}{% endif %}"]
)
def test_a_template_that_does_not_print_a_user_is_refused(body: str, tmp_path: Path) -> None:
    text = source_of(tmp_path, "{% for m in messages %}[{{ m.role }}]" + body + "{% endfor %}")
    with pytest.raises(
        SourceError, match=r"chat_template\.jinja does not print what a user says.*'one message'"
    ) as caught:
        chat_of(text)
    assert "--no-chat" in (caught.value.hint or "")


TOOL_USE = "{% if tools %}{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}"


def with_tools(folder: Path, source: str, template: str = FIRST) -> Text:
    named = [{"name": "default", "template": template}, {"name": "tool_use", "template": source}]
    make_llama(folder)
    (folder / "chat_template.jinja").unlink()
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"chat_template": named}))
    fields = json.loads((folder / "config.json").read_text())
    text = read_text(folder, fields, families.describe(fields))
    assert text is not None
    return text


def test_a_template_for_tools_has_goldens_of_its_own(tmp_path: Path) -> None:
    text = with_tools(tmp_path, TOOL_USE)
    chat = chat_of(text)
    assert chat.tool_use is not None
    assert chat.features == ["chat_tool_use"]
    assert (chat.roles, chat.tool_use.roles) == (
        ["assistant", "system", "user"],
        ["assistant", "system", "tool", "user"],
    )
    assert all(golden.tools and "get_weather" in golden.text for golden in chat.tool_use.goldens)
    assert {golden.name for golden in chat.tool_use.goldens} > {golden.name for golden in chat.goldens}


def test_a_date_may_be_that_of_the_template_for_tools(tmp_path: Path) -> None:
    chat = chat_of(with_tools(tmp_path, TOOL_USE + "{{ strftime_now('%Y') }}"))
    assert chat.date == Date(policy="pinned", day=DAY)
    assert chat.tool_use is not None
    assert chat.tool_use.goldens[0].text.endswith("2024")


FILE = r"additional_chat_templates/tool_use\.jinja"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{% if %}", rf"{FILE}, line 1"),
        ("{{ tools }}", rf"{FILE} does not print what a user says"),
        (FIRST, rf"{FILE} cannot print one message of a user: .*knows no tools"),
        ("{{ raise_exception('Never ' ~ tools) }}", rf"{FILE} cannot print one message of a user: .*Never"),
        ("{{ bos_token * 2 }}{{ tools }}" + FIRST, rf"{FILE} writes BOS twice"),
    ],
)
def test_a_template_for_tools_is_held_to_the_same(source: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=match):
        chat_of(with_tools(tmp_path, source))


def test_bos_is_never_doubled(tmp_path: Path) -> None:
    chat = chat_of(source_of(tmp_path / "a", "{{ bos_token }}" + FIRST))
    assert all(one.ids[0] == 1 and one.ids[1] != 1 for one in chat.goldens)
    # The opener of a turn is BOS here, as in SmolLM2, so that a template which writes both doubles it.
    with pytest.raises(SourceError, match="writes BOS twice before the conversation 'user'"):
        chat_of(source_of(tmp_path / "b", "{{ bos_token }}" + CHAT_TEMPLATE))


def test_a_template_without_bos_gets_none(tmp_path: Path) -> None:
    make_llama(tmp_path, add_bos=True)
    text = source_of(tmp_path / "b", FIRST)
    assert chat_of(text).goldens[0].ids[0] != 1
    tokenizer = Tokenizer.from_json((tmp_path / "tokenizer.json").read_bytes(), 1, True)
    assert tokenizer.encode("What")[0] == 1


DATED = FIRST + "{{ strftime_now('%d %b %Y') }}"


@pytest.mark.parametrize(
    ("source", "asked", "date", "end"),
    [
        (FIRST, None, None, "France?"),
        (FIRST, "passed", None, "France?"),
        (DATED, None, Date(policy="pinned", day=DAY), "26 Jul 2024"),
        (DATED, "2031-12-01", Date(policy="pinned", day="2031-12-01"), "01 Dec 2031"),
        (DATED, "passed", Date(policy="passed", day=DAY), "26 Jul 2024"),
    ],
)
def test_a_date_follows_its_policy(source: str, asked: str | None, date: Date | None, end: str, tmp_path: Path) -> None:
    chat = chat_of(source_of(tmp_path, source), asked)
    assert chat.date == date
    assert chat.goldens[0].text.endswith(end)


@pytest.mark.parametrize("date", ["today", "2024-7-26", "20240726", "2024-02-30", ""])
def test_a_date_that_is_no_day_is_refused(date: str) -> None:
    with pytest.raises(UsageError, match=r"is not a day\. Write it as YYYY-MM-DD, or 'passed'"):
        Recipe(("gguf",), ("q4",), date=date)


def test_a_template_that_cannot_print_a_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot print one message of a user: .* refuses the messages: Never"):
        source_of(tmp_path / "a", "{{ raise_exception('Never') }}")
    with pytest.raises(SourceError, match=r"cannot print one message of a user: .*has no element 7"):
        source_of(tmp_path / "b", "{{ messages[7].content.text }}")


def test_probes_hold_added_tokens_as_text_and_as_tokens(tmp_path: Path) -> None:
    text = source_of(tmp_path)
    probes = vectors_of(text).probes
    assert [probe.text for probe in probes[: len(TEXTS)]] == list(TEXTS)
    inside = [probe for probe in probes if "a<|im_end|>b" in probe.text]
    assert [(probe.special, probe.ids.count(2)) for probe in inside] == [(False, 0), (True, 5)]


def test_of_many_added_tokens_the_first_and_the_last_are_probed(tmp_path: Path) -> None:
    text = source_of(tmp_path)
    flags = text.tokenizer["added_tokens"][0]
    many = [*text.tokenizer["added_tokens"], *(flags | {"id": 384 + i, "content": f"<r{i}>"} for i in range(40))]
    document = dict(text.tokenizer) | {"added_tokens": many}
    tokenizer = Tokenizer.from_json(json.dumps(document).encode(), None, False)
    found = golden.probes(Text({}, document, None, False, (), None), tokenizer)
    assert len(found) == len(TEXTS) + 2 * 16
    assert any("<r39>" in probe.text for probe in found)


# The same by transformers


# What SmolLM3's template has and no other: the mark of training, tools of its own name, a day that it must print.
MARKED = """\
{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' -%}
{{- '<|im_start|>system\\nToday: ' ~ strftime_now('%d %b %Y') ~ mode -}}
{%- if xml_tools -%}
  {%- set ns = namespace(text='') -%}
  {%- for tool in xml_tools[:] -%}
    {%- set ns.text = ns.text ~ (tool | string) ~ '\\n' -%}
  {%- endfor -%}
  {{- ns.text -}}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else '' -%}
  {%- if message.role == 'assistant' -%}
    {% generation %}
    {%- set content = content.lstrip() -%}
    {{ '<|im_start|>assistant\\n' + content + '<|im_end|>' }}
    {% endgeneration %}
  {%- else -%}
    {{ '<|im_start|>' + message.role + '\\n' + content + loop.index|string + '<|im_end|>' }}
  {%- endif -%}
{%- endfor -%}
"""


def template_sources(shared: Path) -> dict[str, str]:
    folder = shared / "chat-templates"
    sources = {"marked": MARKED} | {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    sources["gemma-3-it"] = json.loads((folder / "gemma-3-it.json").read_text())["chat_template"]
    for vector in vectors_in(folder):
        if "template" in vector:
            sources[vector["folder"]] = vector["template"]
    for case in json.loads((folder / "llama.cpp-test-chat-template.json").read_text())["cases"]:
        sources[case["name"]] = case["template_str"]
    return sources


# Those of the real templates that leave out a role without a word, and which.
SILENT = {
    "data/phi-3-medium": "system",
    "data/v5/qwen2.5-synthetic": "tool",
    "OrionStarAI/Orion-14B-Chat": "system",
    "Phi-3-mini": "system",
    "Phi-3-medium": "system",
    "ibm-granite/granite-3.0-8b-instruct": "tool",
    "yandex/YandexGPT-5-Lite-8B-instruct": "system",
}


@pytest.mark.shared
def test_real_templates_print_what_a_user_says(shared: Path) -> None:
    """As a string, with these roles left out; GigaChat fails, which reads additional_special_tokens."""
    found = {
        name: arrive(Job(source, "<bos>", "<eos>", DAY, TEMPLATE, cpu_seconds=10, memory_mib=512))
        for name, source in template_sources(shared).items()
        if "GigaChat" not in name
    }
    assert {name: " ".join(each.lost) for name, each in found.items() if each.lost} == SILENT
    assert all("user" in each.roles and not each.parts for each in found.values())
    assert len(found) >= 45


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of transformers that renders, on the day of the goldens."""
    found: Any = pytest.importorskip("transformers.utils.chat_template_utils")

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Fixed:
            return cls.fromisoformat(DAY)

    monkeypatch.setattr(found, "datetime", Fixed)
    return found


@pytest.mark.oracle
def test_transformers_renders_the_battery_the_same(utils: Any, shared: Path) -> None:
    sources = template_sources(shared)
    rendered = 0
    for name, source in sources.items():
        template = ChatTemplate(source, bos_token="<bos>", eos_token="<eos>", date=DAY)
        for asked in CONVERSATIONS:
            if not asked.needs <= template.reads:
                continue
            wanted: Any = {"tools": asked.tools, "add_generation_prompt": asked.add_generation_prompt}
            names = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": source}
            ours = attempt(partial(template.render, asked.messages, variables=asked.variables, **wanted))
            theirs = attempt(
                partial(utils.render_jinja_template, [asked.messages], **wanted, **names, **asked.variables)
            )
            assert ours == (theirs and theirs[0][0]), (name, asked.name)
            rendered += ours is not None
    assert len(sources) >= 40
    assert rendered > 400


def attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:  # each library has its own tree of errors; here only that it refuses
        return None


REAL = [
    ("tokenizers/llama-3.2", "Llama-3.2-1B-Instruct"),
    ("tokenizers/phi-3.5-mini", "Phi-3.5-mini-instruct"),
    ("tokenizers/qwen3", "Qwen3-0.6B"),
    ("tokenizers/smollm2", "SmolLM2-135M"),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("folder", "config"), REAL)
@pytest.mark.usefixtures("utils")
def test_transformers_gives_the_same_ids(folder: str, config: str, shared: Path, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    fields = json.loads((shared / f"configs/{config}.json").read_text())
    source = tmp_path / "source"
    shutil.copytree(shared / folder, source, copy_function=shutil.copyfile)
    # Its own class of tokenizer depends on the model's type.
    (source / "config.json").write_text(json.dumps(fields))
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    text = read_text(source, fields, families.describe(fields))
    assert text is not None
    ours = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    found = golden.vectors(text, ours)
    for probe in found.probes:
        ids = theirs.encode(probe.text, add_special_tokens=False, split_special_tokens=not probe.special)
        assert ids == probe.ids, probe
    assert theirs("Hello world").input_ids == ours.encode("Hello world")
    names = special_tokens([text.files["tokenizer_config.json"]]) if "tokenizer_config.json" in text.files else ("", "")
    assert names == ((theirs.bos_token or "", theirs.eos_token or "") if found.chat else ("", ""))
    for one in found.chat.goldens if found.chat else []:
        if one.name in NAMING:
            continue  # names in what is said, which transformers takes for tokens
        ids = theirs.apply_chat_template(
            one.messages,
            tools=one.tools,
            add_generation_prompt=one.add_generation_prompt,
            return_dict=False,
            **one.variables,
        )
        assert ids == one.ids, one.name
