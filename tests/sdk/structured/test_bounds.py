"""How large a schema, a regex or a grammar may be, and that whoever waits for one gets an end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any

import pytest
import tiny_tokenizers as tiny

from edgepack import threads
from edgepack.errors import SchemaError
from edgepack.structured import bounds, constrain
from edgepack.structured.apart import apart
from edgepack.structured.constrain import Constraint, compile_grammar
from edgepack.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_json(tiny.byte_level(), None, False)


def refused(**asked: Any) -> str:
    with pytest.raises(SchemaError) as raised:
        compile_grammar(TOKENIZER, TOKENIZER.n_tokens, frozenset({0}), **asked)
    assert raised.value.hint
    return raised.value.message


def deep(count: int) -> Any:
    value: Any = {}
    for _ in range(count):
        value = {"items": value}
    return value


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"json_schema": {"const": "x" * 300_000}}, "json_schema: it has more than 262,144 bytes."),
        ({"json_schema": " " * 300_000}, "json_schema: it has more than 262,144 bytes."),
        ({"json_schema": deep(120)}, "json_schema: /items/items/items/.* has more than 100 levels of nesting."),
        ({"json_schema": deep(20_000)}, "json_schema: it has more than 100 levels of nesting."),
        (
            {"json_schema": '{"items":' * 9000 + "{}" + "}" * 9000},
            "json_schema: it has more than 100 levels of nesting.",
        ),
        (
            {"json_schema": {"properties": {"a": {"anyOf": [{}] * 501}}}},
            "json_schema: /properties/a/anyOf has more than 500 branches.",
        ),
        ({"json_schema": {"enum": list(range(10_001))}}, "json_schema: /enum has more than 10,000 values."),
        (
            {"json_schema": {"properties": {f"p{n}": {} for n in range(1001)}}},
            "json_schema: /properties has more than 1,000 properties.",
        ),
        (
            {"json_schema": {"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)}}},
            "json_schema: /.defs/d4999/ has more than 5,000 schemas.",
        ),
        ({"json_schema": {"$ref": "#/x-a/b", "x-a": {"b": {}}}}, "json_schema: /.ref points to '#/x-a/b'"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema: half a surrogate pair"),
        ({"regex": "a" * 16_385}, "regex: it has more than 16,384 bytes."),
        ({"regex": "\udcff"}, "regex: half a surrogate pair stands at character 0."),
        ({"grammar": "start: a\n" + "\n".join(f'a{n}: "x"' for n in range(2000))}, "grammar: .* 2,000 rules."),
        ({"grammar": 'start: "\ud800"'}, "grammar: half a surrogate pair"),
        ({"grammar": "start: A\nA: " + " & ".join(["/a/"] * 60)}, "grammar: it has more than 50 characters &."),
    ],
)
def test_what_is_too_large_is_refused_with_the_bound(asked: dict[str, Any], complaint: str) -> None:
    assert re.match(complaint, refused(**asked))


def test_a_chain_within_the_bounds_is_followed_on_a_thread_with_a_small_stack() -> None:
    parts: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1500)} | {"d1500": {"const": 1}}
    grammar = "start: r0\n" + "".join(f'r{n}: "a" r{n + 1}\n' for n in range(900)) + 'r900: "z"'
    made = []

    def work() -> None:
        for asked in ({"json_schema": {"$ref": "#/$defs/d0", "$defs": parts}}, {"grammar": grammar}):
            bound = compile_grammar(TOKENIZER, TOKENIZER.n_tokens, frozenset({0}), **asked)  # type: ignore[arg-type]
            assert bound is not None
            constraint = Constraint(bound, 2000)
            for token in bound.write(bound.closing.path):
                assert constraint.allowed[token]
                constraint.accept(token)
            made.append(len(bound.closing.path))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert made == [1, 901]


def test_a_line_without_a_rule_is_read_once() -> None:
    begun = time.process_time()
    bounds.check_text("grammar", "a" * 65_000)
    assert time.process_time() - begun < 1


def test_who_waits_too_long_gets_an_error_and_the_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def work(check: Any) -> None:
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.set()

    with pytest.raises(SchemaError, match="too long"):
        apart(work, 0.05)
    assert ended.wait(10)
    ended.clear()
    monkeypatch.setattr(constrain, "_SECONDS", 0.05)
    monkeypatch.setattr(constrain, "Grammar", lambda *given: work(given[-1]))  # it is asked for, and never made
    assert "too long" in refused(regex="a")
    assert ended.wait(10)


def test_an_interrupt_of_who_waits_ends_the_work() -> None:
    ended = threading.Event()

    def work(check: Any) -> None:
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.set()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            apart(work, 60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended.wait(10)


def test_a_fork_is_not_held_up_by_a_thread_that_it_has_not() -> None:
    with threads._sizes:
        child = os.fork()
        if not child:
            os._exit(apart(lambda check: 7, 10))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_goes_wrong_apart_is_raised_where_it_was_asked_for() -> None:
    with pytest.raises(ZeroDivisionError):
        apart(lambda check: 1 // 0, 10)
