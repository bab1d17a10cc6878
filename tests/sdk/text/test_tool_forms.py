"""Calls that are no JSON, in each form that models write: read back, refused, and found in hostile texts in time."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import tokenizer_of

from edgepack.errors import ToolCallError
from edgepack.text.chat import ChatTemplate
from edgepack.text.history import CallForm, form_of, told
from edgepack.text.prompts import Prompt
from edgepack.text.tool_formats import format_of, named
from edgepack.text.tools import ToolCall, Tools

# Templates as small as they can be that write what the real ones do

TURNS = """{%- for m in messages %}<turn>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}</turn>
{%- endfor %}{% if add_generation_prompt %}<turn>model
{% endif %}"""
GEMMA = (
    """{%- macro spelt(value) -%}
{%- if value is string -%}<|"|>{{ value }}<|"|>
{%- elif value is boolean -%}{{ value | tojson }}
{%- elif value is mapping -%}{ {{- pairs(value) -}} }
{%- elif value is iterable -%}[{%- for each in value -%}{{ spelt(each) }}{{ "," if not loop.last }}{%- endfor -%}]
{%- else -%}{{ value }}
{%- endif -%}
{%- endmacro -%}
{%- macro pairs(of) -%}
{%- for key in of -%}{{ key }}:{{ spelt(of[key]) }}{{ "," if not loop.last }}{%- endfor -%}
{%- endmacro -%}"""
    + TURNS.replace("CALL", "<|tool_call>call:{{ c.function.name }}{ {{- pairs(c.function.arguments) -}} }<tool_call|>")
)  # fmt: skip
FUNCTION_GEMMA = (
    GEMMA.replace("<|tool_call>", "<start_function_call>").replace("<tool_call|>", "<end_function_call>")
    .replace('<|"|>', "<escape>")
)  # fmt: skip
QWEN = TURNS.replace(
    "CALL",
    """<tool_call>
<function={{ c.function.name }}>
{% for key, value in c.function.arguments.items() %}<parameter={{ key }}>
{{ value | tojson if value is mapping or (value is iterable and value is not string) else value }}
</parameter>
{% endfor %}</function>
</tool_call>""",
)
SEED = TURNS.replace(
    "CALL",
    "<seed:tool_call>\n<function={{ c.function.name }}>\n{% for key, value in c.function.arguments.items() %}"
    "<parameter={{ key }}>{{ value }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>",
)
MINICPM = TURNS.replace(
    "CALL",
    """<function name="{{ c.function.name }}">{% for key, value in c.function.arguments.items() %}
{{- '<param name="' + key + '">' }}
{%- if value is string and "<" in value %}<![CDATA[{{ value }}]]>{% else %}{{ value }}{% endif %}</param>
{%- endfor %}</function>""",
)
MINISTRAL = TURNS.replace("CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}")
LFM2 = TURNS.replace(
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}",
    """{% if m.tool_calls %}<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}(
{%- for key, value in c.function.arguments.items() %}{{ key }}=
{%- if value is string %}'{{ value }}'{% elif value is mapping %}{{ value | tojson }}{% else %}{{ value }}{% endif %}
{{- ", " if not loop.last }}{% endfor %}){{ ", " if not loop.last }}{% endfor %}]<|tool_call_end|>{% endif %}""",
)
NAMES = {
    GEMMA: "Gemma 4",
    FUNCTION_GEMMA: "FunctionGemma",
    QWEN: "Qwen3.5",
    SEED: "Seed-OSS",
    MINICPM: "MiniCPM5",
    MINISTRAL: "Ministral 3",
    LFM2: "LFM2",
}
FORMS = pytest.mark.parametrize("source", NAMES, ids=NAMES.values())

TYPES = {
    "text": {"type": "string"},
    "whole": {"type": "integer"},
    "real": {"type": "number"},
    "yes": {"type": "boolean"},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "list": {"type": "array"},
    "more": {"type": "object"},
}
PARAMETERS = {"type": "object", "properties": TYPES, "additionalProperties": False}
F = Tools.of([{"name": "f", "parameters": PARAMETERS}, {"name": "g.h-1"}])
USER = {"role": "user", "content": "Hi"}


@cache
def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="", eos_token="", date=None)


def written(source: str, calls: list[ToolCall]) -> str:
    """Return what a template prints for an assistant's calls."""
    functions = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    said = {"role": "assistant", "content": "", "tool_calls": functions}
    text = str.__str__(template_of(source).render([USER, said], add_generation_prompt=False))
    return text.rpartition("<turn>assistant\n")[2].removesuffix("</turn>")


# What no form can write inside of a text, because nothing is escaped there.
ENDS = {
    GEMMA: ["<|"],
    FUNCTION_GEMMA: ["<escape"],
    QWEN: ["</parameter"],
    SEED: ["</parameter", "<!["],
    MINICPM: ["</param", "]]>", "<!["],
    MINISTRAL: [],
    LFM2: ["'", "\\"],
}
TRICKY = [
    "}",
    "{",
    "]",
    ")",
    '"',
    ",",
    ":",
    "=",
    "\n",
    "<",
    ">",
    "\\",
    "'",
    "it's",
    "</think>",
    "<tool_call>",
    "3",
    "null",
]
TRICKY += [
    "</tool_call>",
    "<|tool_call>",
    "<tool_call|>",
    "</function>",
    "<parameter=a>",
    "[ARGS]",
    "[TOOL_CALLS]",
    "<esc",
]
REAL = st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["a", "two words", "x-y", "größe"])


@cache
def calls_in(source: str) -> st.SearchStrategy[list[ToolCall]]:
    """Return calls with every value that a form can write, in texts and in what its schema gives a type."""
    cannot = re.compile("|".join(map(re.escape, ENDS[source])) or "(?!)")
    text = st.lists(st.sampled_from(TRICKY) | st.text(max_size=6), max_size=4).map("".join)
    text = text.map(lambda each: cannot.sub("", each)).filter(lambda each: not cannot.search(each))
    plain = st.none() | st.booleans() | st.integers() | REAL | text
    value = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
    of = {
        "text": text,
        "whole": st.integers(),
        "real": REAL,
        "yes": st.booleans(),
        "maybe": st.none() | st.integers(),
        "list": st.lists(value, max_size=3),
        "more": st.dictionaries(KEYS, value, max_size=3),
    }
    call = st.builds(ToolCall, st.just("f"), st.fixed_dictionaries({}, optional=of)) | st.just(ToolCall("g.h-1", {}))
    return st.lists(call, min_size=1, max_size=3)


@FORMS
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_a_template_writes_is_read_back(source: str, data: st.DataObject) -> None:
    calls = data.draw(calls_in(source))
    content, found = F.parse(written(source, calls), source)
    assert content == ""
    assert repr(found) == repr(tuple(calls))


@FORMS
def test_a_form_is_known_by_its_template_and_history_goes_through_it(source: str) -> None:
    assert named(source) == NAMES[source]
    F.check(source)
    template = template_of(source)
    assert form_of(template) == CallForm()
    call = ToolCall("f", {"text": "Rome"}, "call00001")
    asked = {"id": call.id, "function": {"name": "f", "arguments": '{"text": "Rome"}'}}  # as clients send it
    said = told(
        [USER, {"role": "assistant", "content": "", "tool_calls": [asked]}, call.answered("21")], CallForm(), ()
    )
    prompt = template.render(said)
    assert written(source, [call]) in prompt
    assert "<turn>tool\n21</turn>" in prompt


@FORMS
def test_text_stands_before_calls_and_after_thoughts(source: str) -> None:
    calls = [ToolCall("f", {"text": "Rome", "whole": 3}), ToolCall("g.h-1", {})]
    text = written(source, calls)
    assert F.parse(f"I look.\n{text}", source) == ("I look.", tuple(calls))
    if format_of(source).closing:
        assert F.parse(f"{text}\nDone.", source) == ("Done.", tuple(calls))
    thought = f"<think>perhaps {text}</think>"
    assert F.parse(f"{thought}No.", source) == (f"{thought}No.", ())
    assert F.parse(f"{thought}\n{text}", source) == (thought, tuple(calls))
    assert F.parse("No call.", source) == ("No call.", ())
    # JSON is a call here too, where nothing else is said.
    assert F.parse('{"name": "f", "arguments": {"whole": 3}}', source)[1] == (ToolCall("f", {"whole": 3}),)


@FORMS
def test_a_call_that_is_cut_or_of_no_tool_is_an_error_with_the_answer(source: str) -> None:
    text = written(source, [ToolCall("f", {"text": "Rome", "list": [1, "a"]})])
    form = format_of(source)
    for end in range(len(form.opening), len(text.removesuffix(form.closing).rstrip())):
        with pytest.raises(ToolCallError) as raised:
            F.parse(text[:end], source)
        assert raised.value.text == text[:end]
        assert len(raised.value.message) < 300
    with pytest.raises(ToolCallError, match="called 'nothing', which is no tool"):
        F.parse(written(source, [ToolCall("nothing", {})]), source)
    with pytest.raises(ToolCallError, match=r"do not fit its schema: arguments\.yes"):
        F.parse(written(source, [ToolCall("f", {"yes": "perhaps"})]), source)
    with pytest.raises(ToolCallError, match=r"is followed by 'and'|has no '</param>'"):
        F.parse(text.removesuffix(form.closing) + " and", source)


def called(body: str, form: str = "") -> dict[str, Any]:
    source = {
        "gemma": GEMMA,
        "escape": FUNCTION_GEMMA,
        "lfm": LFM2,
        "qwen": QWEN,
        "mini": MINICPM,
        "mistral": MINISTRAL,
    }
    marks = format_of(source[form])
    ((call,)) = F.parse(f"{marks.opening}{body}{marks.closing}", source[form])[1]
    assert call.coerced == {}
    return call.arguments


@pytest.mark.parametrize(
    ("form", "body", "arguments"),
    [
        ("gemma", "call:f{}", {}),
        ("gemma", '\ncall: f { text : <|"|>a}b,c:<|"|> , whole:-3 }\n', {"text": "a}b,c:", "whole": -3}),
        ("gemma", 'call:f{<|"|>text<|"|>:<|"|><|"|>,more:{<|"|>a:b<|"|>:1}}', {"text": "", "more": {"a:b": 1}}),
        ("gemma", 'call:f{"text":"a \\"b\\"",list:[true,false,null,None,1e3]}',
         {"text": 'a "b"', "list": [True, False, None, None, 1000.0]}),
        ("escape", 'call:f{text:<escape>say <|"|><escape>,list:[[],{}]}', {"text": 'say <|"|>', "list": [[], {}]}),
        ("lfm", '[f(text="a, b)", whole = 3)]', {"text": "a, b)", "whole": 3}),
        ("lfm", "[f(text='it's late', yes=True)]", {"text": "it's late", "yes": True}),
        ("lfm", r"""[f(text='a\'b\\c\n\u00fc\x41\q', list=['\ud83d\ude80', "\U0001f680"])]""",
         {"text": "a'b\\c\nüA\\q", "list": ["🚀", "🚀"]}),
        ("lfm", '[f(more={"a": true, \'b\': None}, list=[])]', {"more": {"a": True, "b": None}, "list": []}),
        ("qwen", "<function=f><parameter=text>a</parameter><parameter=whole> 3 </parameter></function>",
         {"text": "a", "whole": 3}),
        ("qwen", "\n<function=f>\n<parameter=text>\n</parameter>\n\n</parameter>\n</function>\n",
         {"text": "</parameter>\n"}),
        ("qwen", "<function=f>\n<parameter=text>\n<![CDATA[a]]>\n</parameter>\n</function>", {"text": "<![CDATA[a]]>"}),
        ("mini", 'f"><param name="text"><![CDATA[a\n<b>]]></param><param name="whole">3</param>',
         {"text": "a\n<b>", "whole": 3}),
        ("mistral", 'f[CALL_ID]abc[ARGS] {"whole": 3}', {"whole": 3}),
    ],
)  # fmt: skip
def test_what_models_write_besides_is_read(form: str, body: str, arguments: dict[str, Any]) -> None:
    assert repr(called(body, form)) == repr(arguments)


@pytest.mark.parametrize(
    ("form", "body", "reason"),
    [
        ("gemma", "f{}", "'f{}<tool_call|>' in the place of 'call:'"),
        ("gemma", "call:{}", "'{}<tool_call|>' in the place of a name"),
        ("gemma", "call:f", "in the place of '{'"),
        ("gemma", "call:f{text}", "in the place of ':'"),
        ("gemma", "call:f{text:Rome}", "'Rome}<tool_call|>' in the place of a value"),
        ("gemma", 'call:f{text:<|"|>Rome}', "a text without an end"),
        ("gemma", "call:f{whole:1 yes:true}", "'yes:true}<tool_call|' in the place of ','"),
        ("gemma", "call:f{whole:1,}", "in the place of a name"),
        ("gemma", "call:f{whole:01}", "'01}<tool_call|>' in the place of a value"),
        ("gemma", "call:f{real:1e999}", "1e999 is no finite number"),
        ("gemma", "call:f{real:nan}", "in the place of a value"),
        ("gemma", "call:f{whole:" + "9" * 5000 + "}", "Exceeds the limit"),
        ("gemma", "call:f{list:" + "[" * 200 + "]" * 200 + "}", "too many brackets inside one another"),
        ("gemma", "call:f{more:{a:[1}}", "in the place of ','"),
        ("lfm", "[]", "']<|tool_call_end|>' in the place of a name"),
        ("lfm", "f()", "in the place of '['"),
        ("lfm", "[f(1)]", "in the place of '='"),
        ("lfm", "[f(text='a)]", "a text without an end"),
        ("lfm", r"[f(text='\ud83d')]", "half a surrogate pair"),
        ("qwen", '{"name": "f"}', "in the place of '<function='"),
        ("qwen", "<function=f", "'</tool_call>' in the place of '>'"),
        ("qwen", "<function=f><parameter=text>a</function>", "has no '</parameter>' after 'text'"),
        ("mini", 'f"><param name="text">a', "has no '</param>' after 'text'"),
        ("qwen", "<function=f>", "in the place of '</function>'"),
        ("mistral", "f{}", "in the place of '[ARGS]'"),
        ("mistral", "f[ARGS]x", "not JSON"),
        ("mistral", "f[ARGS][]", "no object of arguments"),
    ],
)
def test_what_is_no_call_is_refused_by_its_place(form: str, body: str, reason: str) -> None:
    with pytest.raises(ToolCallError, match=re.escape(reason)):
        called(body, form)


# Values without types


SORTS = {
    "name": {"enum": ["1", "b"]},
    "level": {"enum": [1, 2]},
    "either": {"type": ["string", "integer"]},
    "null": {"type": "null"},
    "on": {"$ref": "#/$defs/flag"},
    "days": {"type": "array", "items": {"type": "integer"}},
    "any": {},
}
SORTED = Tools.of(
    [{"name": "f", "parameters": {"type": "object", "properties": SORTS, "$defs": {"flag": {"type": "boolean"}}}}]
)


def sort(key: str, text: str) -> ToolCall:
    body = f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    ((call,)) = SORTED.parse(body, QWEN)[1]
    return call


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "1", "1"),
        ("level", "2", 2),
        ("either", "3", "3"),
        ("any", "[1]", "[1]"),
        ("unknown", "true", "true"),
        ("null", "null", None),
        ("null", "None", None),
        ("on", "true", True),
        ("on", "False", False),
        ("days", "[1, 2]", [1, 2]),
        ("days", " [1] \n", [1]),
    ],
)
def test_a_schema_says_what_a_text_is(key: str, text: str, value: object) -> None:
    call = sort(key, text)
    assert repr(call.arguments) == repr({key: value})
    assert call.coerced == {}


def test_what_a_model_wrote_in_another_type_is_coerced_and_told() -> None:
    call = sort("days", '[1, "2"]')
    assert call.arguments == {"days": [1, 2]}
    assert call.coerced == {"arguments.days[1]": "2"}


@pytest.mark.parametrize(
    ("key", "text"),
    [("name", "2"), ("level", "3"), ("null", "nil"), ("on", "yes"), ("on", "1"), ("days", "[1, 2"), ("days", "[1] 2")],
)
def test_a_text_that_its_schema_does_not_take_is_refused(key: str, text: str) -> None:
    with pytest.raises(ToolCallError, match=rf"do not fit its schema: arguments\.{key}"):
        sort(key, text)


# Marks that are special tokens


@pytest.mark.parametrize(
    ("source", "specials"),
    [
        (GEMMA, ["<|tool_call>", "<tool_call|>", '<|"|>']),
        (FUNCTION_GEMMA, ["<start_function_call>", "<end_function_call>", "<escape>"]),
        (MINISTRAL, ["[TOOL_CALLS]", "[ARGS]"]),
        (LFM2, ["<|tool_call_start|>", "<|tool_call_end|>"]),
        (MINICPM, ["<function", "</function>", "<param", "</param>", "<![CDATA[", "]]>"]),
        (SEED, ["<seed:tool_call>", "</seed:tool_call>"]),
    ],
    ids=["gemma", "functiongemma", "ministral", "lfm2", "minicpm", "seed"],
)
def test_marks_without_text_are_read_from_the_tokens(source: str, specials: list[str]) -> None:
    tokenizer = tokenizer_of({}, dict(enumerate(["<turn>", *specials], 256)))
    calls = [ToolCall("f", {"text": "a <b, c", "whole": 3}), ToolCall("g.h-1", {})]
    ids = tokenizer.encode("I look. " + written(source, calls), special=True)
    text = tokenizer.decode(ids)
    assert not any(mark in text for mark in specials)
    reads = F.reading(tokenizer, source, Prompt([], "", at_start=True))
    assert reads(text, [*ids, 256]) == ("I look.", tuple(calls))


@pytest.mark.parametrize("mark", ["<|tool_list_start|>", "<|im_start|>List of tools: ["])
def test_templates_that_write_no_calls_teach_them_by_their_list(mark: str) -> None:
    assert named(mark) == "LFM2"
    assert F.parse("<|tool_call_start|>[f(whole=3)]<|tool_call_end|>", mark)[1] == (ToolCall("f", {"whole": 3}),)


# Hostile texts


def read_or_refused(source: str, text: str) -> tuple[str, tuple[ToolCall, ...]] | ToolCallError:
    try:
        return F.parse(text, source)
    except ToolCallError as error:
        return error


@FORMS
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from([*TRICKY, "call:", "f", "{", "(", "whole"]) | st.text(max_size=5), max_size=10))
def test_any_text_is_read_or_refused(source: str, pieces: list[str]) -> None:
    text = format_of(source).opening + "".join(pieces)
    found = read_or_refused(source, text)
    if isinstance(found, ToolCallError):
        assert found.text == text
    else:
        assert found[1] or found[0] == text


LONG = 200_000


@FORMS
@pytest.mark.parametrize(
    "body",
    [
        "OPEN" * LONG,
        "OPENcall:f{more:" + "{a:" * LONG,
        "OPENcall:f{list:" + "[" * LONG,
        "OPENcall:" + "f" * LONG,
        "OPENcall:f{" + "a" * LONG,
        "OPENcall:f{text:" + " " * LONG,
        'OPENcall:f{text:<|"|>' + "a" * LONG,
        "OPENcall:f{whole:" + "9" * LONG,
        "OPEN[f(text=" + "'" * LONG,
        "OPEN[f(text='" + "' " * LONG,
        "OPEN[f(text='" + "'" + " " * LONG + "x" + "\\" * LONG,
        "OPEN[" + "f(), " * LONG,
        "OPEN<function=f>" + "<parameter=a>" * LONG,
        "OPEN<function=f><parameter=a>" + "</parameter> " * LONG,
        'OPENf"><param name="a">' + "</param>" + " " * LONG + "</param>" * LONG,
        "OPEN<function=" + "f" * LONG,
        "OPENf[ARGS]" + "[" * LONG,
        "OPEN" + "f" * LONG + "[CALL_ID]" * LONG,
    ],
    ids=range(18),
)
def test_long_hostile_answers_end(source: str, body: str) -> None:
    """Each takes hours where the time grows with the square of the length."""
    found = read_or_refused(source, body.replace("OPEN", format_of(source).opening))
    assert not isinstance(found, ToolCallError) or len(found.message) < 400
