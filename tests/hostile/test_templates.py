"""Templates of strangers: what looks for a way out of the sandbox, and what would take all time or all memory.

Each is sealed into a bundle with all digests right, opened by ``load`` and given one message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import small_bundle
from limited import Ended, in_child

import edgepack
from edgepack import FakeRuntime

pytestmark = pytest.mark.hostile

CODE = {
    "class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a clock": "{{ strftime_now.__globals__['os'].system('touch owned') }}",
    "attribute by a filter": "{{ ''|attr('__class__') }}",
    "attribute by an item": "{{ ''['__class__'] }}",
    "attribute by map": "{{ ['']|map(attribute='__class__')|list }}",
    "attribute by a layout": "{{ '{0.__class__.__mro__}'.format('') }}",
    "attribute by format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "frame of a generator": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "environment of itself": "{{ self._TemplateReference__context.environment }}",
    "environment of a loop": "{% for m in messages %}{{ loop._iterator.__reduce__() }}{% endfor %}",
    "builtins of a namespace": "{{ namespace.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "builtins of a cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "a message that grows": "{{ messages.append(1) }}{{ messages[0].update(role='x') }}",
    "another file": "{% include '/etc/passwd' %}{% import 'os' as os %}",
    "the account": "{{ [-10**9]|map('*step')|list }}{% set x = 'a' * 10**9 %}{{ x|length }}",
}

TWICE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x|length }}"
RESOURCES = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over texts": "{% for a in 'a' * 9**7 %}{% for b in 'a' * 9**7 %}{{ a }}{% endfor %}{% endfor %}",
    "a loop in itself": "{% for a in [range(9999)] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "a macro of macros": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n else 'a' }}{% endmacro %}{{ m(60) }}",
    "a macro in a macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a text times": "{{ ('a' * 10**10)|length }}",
    "times a list": "{{ (10**10 * [messages])|length }}",
    "a text twice": TWICE.replace("START", "'a'").replace("STEP", "ns.x ~ ns.x"),
    "a text and itself": TWICE.replace("START", "'a'").replace("STEP", "ns.x + ns.x"),
    "a text joined": TWICE.replace("START", "'ab'").replace("STEP", "ns.x.join(ns.x)"),
    "a list twice": TWICE.replace("START", "[1]").replace("STEP", "ns.x + ns.x"),
    "a list in itself": TWICE.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]").replace("|length", ""),
    "a dict in itself": TWICE.replace("START", "{}")
    .replace("STEP", "{1: ns.x, 2: ns.x}")
    .replace("|length", "|tojson"),
    "a dict called": TWICE.replace("START", "{}").replace("STEP", "dict(a=ns.x, b=ns.x)").replace("|length", "|string"),
    "batches": TWICE.replace("START", "[1]").replace("STEP", "(ns.x + ns.x)|batch(2)|list").replace("|length", ""),
    "a namespace in another": "{% set a = namespace() %}"
    + "{% set b = namespace(x=a, y=a) %}{% set a = b %}" * 60
    + "{{ a }}",
    "a text captured": "{% set x = 'a' * 9**7 %}{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
    "many of one": "{{ range(99999)|map('replace', '', 'a' * 9**7)|list|length }}",
    "a column": "{{ 'a'|center(10**10) }}",
    "a column of a text": "{{ 'a'.ljust(10**10) }}",
    "columns": "{{ ('\n' * 9**6)|indent(9999)|length }}",
    "a layout": "{{ '%10000000000d' % 1 }}",
    "a layout with a star": "{{ '%*d' % (10**10, 1) }}",
    "a layout of fields": "{{ '{:10000000000}'.format(1) }}",
    "a layout within a layout": "{{ '{:{}}'.format(1, 10**10) }}",
    "a layout of layouts": "{{ ('%s' * 9999 % ((('a' * 9999),) * 9999))|length }}",
    "a power": "{{ 10**10**10 }}",
    "powers": TWICE.replace("START", "3").replace("STEP", "ns.x * ns.x").replace("|length", " > 1"),
    "batches of nothing": "{{ []|batch(10**10, 1)|list|length }}",
    "slices of nothing": "{{ []|slice(10**10)|list|length }}",
    "replaced by more": "{{ ('a' * 9**6)|replace('', 'a' * 9**6)|length }}",
    "tabs": "{{ ('\t' * 9**6).expandtabs(9999)|length }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "words": "{{ lipsum(n=10**8) }}",
    "an indented JSON": "{{ messages|tojson(indent=10**10) }}",
    "a text without end": "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "a sum of lists": "{{ ([[1] * 999] * 9999)|sum(start=[])|length }}",
    "a long comparison": "{% set x = 'a' * 9**8 %}{% for i in range(99999) %}{{ 'b' in x }}{% endfor %}",
    "a constant": "{{ (10**5000)|string }}",
    "a size": "{{ (10**5000)|filesizeformat }}",
    "a reason": "{{ raise_exception(['a' * 9**7] * 99999) }}",
    "a long template": "{{ messages }}" * 100_000,
    "a deep template": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
    "an infinite number": "{{ 1e999 }}{{ -1e999|int }}",
    "a long number": "{{ " + "9" * 9999 + " }}",
}


def opened(folder: Path, template: str, goldens: bool) -> str:
    """Seal a template into a bundle, open that and say "hi" to it."""
    bundle = small_bundle.write(folder)
    (bundle / "chat_template.jinja").write_text(f"hi{template}", "utf-8")
    document = small_bundle.manifest([small_bundle.variant("fake-q4")])
    names = ("LICENSE", "tokenizer.json", "tokenizer.bin", "tokenizer_config.json", "chat_template.jinja")
    document["files"] = [small_bundle.entry(name, (bundle / name).read_bytes()) for name in names]
    if not goldens:
        document["chat"]["goldens"] = []
    (bundle / "manifest.json").write_text(json.dumps(document), "utf-8")
    with edgepack.load(bundle, runtimes={"fake": FakeRuntime()}) as model:
        return model.chat([{"role": "user", "content": "hi"}], max_tokens=1).text


def ends(folder: Path, templates: Mapping[str, str], count: int) -> dict[str, Ended]:
    """How each of so many templates ends, at the first opening and where that has nothing to render."""
    return {
        f"{name}, goldens={goldens}": in_child(
            partial(opened, folder / f"{number}{goldens}", templates[name], goldens), seconds=60, gigabytes=2
        )
        for number, name in enumerate(list(templates)[:count])
        for goldens in (False, True)
    }


def test_no_template_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: Callable[[int], int]) -> None:
    monkeypatch.chdir(tmp_path)
    found = ends(tmp_path, CODE, portion(len(CODE)))
    assert {name: end for name, end in found.items() if not end.clean or "root:" in end.text} == {}
    assert not (tmp_path / "owned").exists()


def test_no_template_takes_all_time_or_memory(tmp_path: Path, portion: Callable[[int], int]) -> None:
    found = ends(tmp_path, RESOURCES, portion(len(RESOURCES)))
    assert {name: end for name, end in found.items() if not end.clean} == {}
