"""What a template may take, and that counting changes nothing of what it prints."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgepack.errors import BundleError
from edgepack.text import account
from edgepack.text.chat import ChatTemplate
from edgepack.text.metering import MAX_SOURCE, MeteredEnvironment

MESSAGES = [{"role": "user", "content": " a <b> "}, {"role": "assistant", "content": "é\nb", "n": 3}]

SNIPPETS = [
    "{{ 'a' ~ 1 ~ messages[0].role ~ none }}",
    "{{ 'a' + 'b' + messages[0].role + 'c' }}{{ 1 + 2 + 3 }}{{ [1] + messages }}{{ 1 + 0.5 }}",
    "{{ messages[0].role + ('a' + 'b') }}{{ 1 - 2 + 3 * 4 % 5 ** 2 // 2 }}",
    "{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' in 'abc' }}{{ 'role' in messages[0] }}{{ 'x' not in ['a', 'x'] }}",
    "{{ messages[0].role == messages[1].role }}{{ messages[0] == messages[0] }}{{ messages[0].role in ['user'] }}",
    "{{ messages[1:] }}{{ messages[::-1][0].role }}{{ messages[0].content[1:3] }}{{ messages[-1]['role'] }}",
    "{% set i = 1 %}{{ messages[i].role }}{{ messages[i - 1].role }}{{ messages[0]['ro' ~ 'le'] }}",
    "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.nextitem }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content|trim }}{% break %}{% endfor %}",
    "{% for m in nothing %}{% else %}no{% endfor %}{% for c in 'abc' %}{{ c }}{% continue %}x{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "{% for r in messages|map(attribute='role') %}{{ r }}{% endfor %}",
    "{% for x in [[1, [2]], 3] recursive %}{{ x if x is number else '(' ~ loop(x) ~ ')' }}{% endfor %}",
    "{% macro m(a, b='x') %}<{{ a }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}{% call m(1) %}in{% endcall %}",
    "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% set ns = namespace(a=1, b=[]) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{% set x %}a{{ ns.a }}{% endset %}{{ x }}",
    "{% filter upper %}a{{ messages[0].role }}{% endfilter %}{% set y | trim %} a {% endset %}{{ y }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|map(attribute='role')|join(', ') }}",
    "{{ messages|tojson }}{{ messages[1]|tojson(indent=2) }}{{ messages[0]|dictsort }}{{ [3, 1, 2]|sort|first }}",
    "{{ '%s and %03d' % ('a', 7) }}{{ '%s'|format('x') }}{{ '{} {a}'.format(1, a='b') }}{{ '%.2f'|format(1.5) }}",
    "{{ 'a,b'.split(',') }}{{ ' a '.strip() }}{{ ','.join(['a', 'b']) }}{{ 'aa'.replace('a', 'b') }}{{ 'a'.rjust(5) }}",
    "{{ 'a' is in 'abc' }}{{ 3 is gt 2 }}{{ 'a' is eq 'a' }}{{ 'a' is lower }}{{ messages is sequence }}{{ 2 * 'ab' }}",
    "{{ [1, 2, 3]|batch(2)|list }}{{ 'abc'|list }}{{ range(5)|sum }}{{ 'a\nb'|indent(2) }}",
    "{{ 'a b'|title|replace('A', 'x') }}{{ messages|length }}{{ messages|first }}{{ nothing|default('x') }}",
    "{{ {'a': messages[0].role, 'b': [messages]}['a'] }}{{ (messages, 1)|length }}{{ [messages[0].role, 1] }}",
    "{% block b %}{{ messages[0].role }}{% endblock %}{{ self.b() }}{{ dict(a=1).a }}{{ cycler('a', 'b').next() }}",
]


@pytest.mark.parametrize("source", SNIPPETS)
def test_counting_changes_nothing_of_what_is_printed(source: str) -> None:
    plain: Any = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    counted: Any = MeteredEnvironment(extensions=["jinja2.ext.loopcontrols"])
    for environment in (plain, counted):
        environment.policies["json.dumps_kwargs"] = {}
    assert counted.from_string(source).render(messages=MESSAGES) == plain.from_string(source).render(messages=MESSAGES)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="", eos_token="", date=None)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% break %}{% endfor %}{% endfor %}" * 9,
        "{{ ('a' * 10**9)|length }}",
        "{{ '%10000000000d' % 1 }}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{{ [-10**12]|map('*step')|list }}{{ ('a' * 10**9)|length }}",
    ],
)
def test_a_template_that_takes_too_much_is_an_error_of_the_bundle(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "BUDGET", 1 << 23)
    with pytest.raises(BundleError, match=r"chat_template\.jinja fails on these messages"):
        template(source).render(MESSAGES)


def test_a_template_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "CPU_SECONDS", 0.0)
    time.thread_time()
    with pytest.raises(BundleError, match="more time or memory"):
        template("{% for a in range(99999) %}{% endfor %}").render(MESSAGES)


@pytest.mark.parametrize("source", ["{{ " + "9" * 9999 + " }}", "x" * (MAX_SOURCE + 1), "{{ 'a'|striptags }}"])
def test_a_template_that_does_not_compile_is_an_error_of_the_bundle(source: str) -> None:
    with pytest.raises(BundleError, match=r"chat_template\.jinja"):
        template(source)


@pytest.mark.parametrize("source", ["{{ (10**5000)|string }}", "{{ (10**5000)|filesizeformat }}", "{{ 'a' * 10**12 }}"])
def test_no_constant_is_computed_beforehand(source: str) -> None:
    compiled = template(source)
    with pytest.raises(BundleError, match="fails on these messages"):
        compiled.render(MESSAGES)


def test_a_thousand_messages_spend_a_hundredth() -> None:
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim }}{% endfor %}"
    environment: Any = MeteredEnvironment()
    context = environment.from_string(source).new_context({"messages": MESSAGES * 500})
    "".join(environment.from_string(source).root_render_func(context))
    assert account.BUDGET - context._left < account.BUDGET // 100
