"""What llguidance would get wrong: numbers, constants and unions are enforced as the schema says, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers as tiny

from edgepack.errors import SchemaError
from edgepack.structured.closing import END
from edgepack.structured.constrain import Constraint, Grammar, compile_grammar
from edgepack.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_json(tiny.byte_level(), None, False)
STOP = 0


def bound(schema: dict[str, Any]) -> Grammar:
    grammar = compile_grammar(TOKENIZER, TOKENIZER.n_tokens, frozenset({STOP}), json_schema=schema)
    assert grammar is not None
    return grammar


def fits(schema: dict[str, Any], text: str) -> bool:
    matcher = bound(schema).closing.matcher
    return bool(matcher.validate_tokens([*text.encode(), END]) == len(text) + 1)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}, "1.2 1.5 1.0001", "1 1.0 1.00 2"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.1 0.5 0.000001", "0 0.0 -0 0.51"),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, "-0.5 -0.1", "0 -0 -0.0"),
        ({"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}, "-1.5 -1.1", "-1 -1.0"),
        ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, "0.5 0.99 0.999999", "1 1.0"),
        ({"type": "number", "allOf": [{"exclusiveMinimum": 2}, {"maximum": 2.5}]}, "2.1 2.5", "2 2.0"),
        ({"type": "number", "exclusiveMinimum": 1, "minimum": 1.25}, "1.25 7", "1 1.2"),
        ({"type": "number", "maximum": 0.9999999999999999}, "0.5 -3", "1 1.0"),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, "1 2", "0 3 -1"),
        ({"type": "integer", "maximum": 2**53 + 3}, "0 -5", f"{2**53 + 4} {2**53 + 5}"),
        ({"type": "integer", "minimum": 0, "maximum": 2**64}, "0 9007199254740993", "-1"),
        ({"type": "integer", "minimum": -(10**30)}, "5 -5", "0.5"),
        ({"enum": [0.1, 3.141592653589793, 1.0]}, "0.1 3.141592653589793 1", "0.2"),
        ({"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 6}]}, "5 6", "0.5"),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, "1 2", "3"),
        ({"oneOf": [{"type": "string", "maxLength": 1}, {"type": "string", "minLength": 2}]}, '"" "a" "ab"', "1"),
        (
            {"$defs": {"a": {"type": "object"}, "b": {"type": "null"}},
             "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}, "null {}", "1",
        ),
        (
            {"anyOf": [{"minimum": 3}],
             "oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 7}]}, "3 5 7", "2 6",
        ),
    ],
)  # fmt: skip
def test_bounds_constants_and_unions_hold(schema: dict[str, Any], good: str, bad: str) -> None:
    assert [text for text in good.split() if not fits(schema, text)] == []
    assert [text for text in bad.split() if fits(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"properties": {"id": {"const": 2**53 + 1}}}, "json_schema: /properties/id/const has a number of more digits"),
        ({"enum": ["a", [{"b": 1e300}]]}, "json_schema: /enum has a number of more digits"),
        ({"const": 10**400}, "json_schema: /const has a number of more digits"),
        ({"type": "integer", "minimum": 10**30}, "json_schema: /minimum is beyond 64 bits"),
        ({"type": "number", "exclusiveMaximum": -(10**30)}, "json_schema: /exclusiveMaximum is beyond 64 bits"),
        ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "json_schema: its multipleOf together are more"),
        (
            {"properties": {"a": {"oneOf": [{"const": 1}, {"const": 2}]}, "b": {"oneOf": [{"type": "integer"}, {}]}}},
            "json_schema: /properties/b/oneOf has branches that may fit the same answer",
        ),
        ({"oneOf": [{"const": [1]}, {"const": [1.0]}]}, "json_schema: /oneOf has branches that may fit the same"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SchemaError) as raised:
        bound(schema)
    assert raised.value.message.startswith(complaint)
    assert "coerce_one_of" not in str(raised.value)


def longest(grammar: Grammar, *wanted: bytes) -> str:
    """Return the answer of a model that goes on with the first of these texts that is allowed."""
    constraint, text = Constraint(grammar, 10_000), b""
    tokens = {TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.n_tokens)}
    while not constraint.finished:
        allowed = constraint.allowed
        token = next((tokens[each] for each in wanted if allowed[tokens[each]]), int(np.flatnonzero(allowed)[0]))
        if token == STOP:
            break
        constraint.accept(token)
        text += TOKENIZER.token_bytes(token)
    return text.decode()


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "number"}, {"type": "integer", "minimum": 0}, {}])
def test_a_number_comes_to_its_end(schema: dict[str, Any]) -> None:
    assert longest(bound(schema), b"9") == "9" * 32


def test_a_fraction_and_a_power_come_to_their_end() -> None:
    grammar = bound({"type": "number", "minimum": 0.5})
    assert longest(grammar, b"3", b".") == "3" * 32
    assert longest(grammar, b".", b"6", b"0") == "6." + "6" * 30
    assert longest(bound({"type": "number"}), b"e", b"9") == "9e99"
    assert longest(bound({"type": "number"}), b"e", b"-", b"9") == "-9e-999"


def test_a_number_that_has_to_go_on_may_go_on() -> None:
    constraint = Constraint(bound({"type": "number"}), 1000)
    tokens = {TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.n_tokens)}
    digits = [tokens[b"%d" % digit] for digit in range(10)]
    for byte in b"9" * 31 + b".5":
        assert constraint.allowed[tokens[bytes([byte])]]
        constraint.accept(tokens[bytes([byte])])
    assert not constraint.allowed[digits].any()
    assert constraint.allowed[STOP]


def test_a_constant_may_be_long_and_digits_in_a_string_are_text() -> None:
    assert longest(bound({"const": 1e-22}), b"0") == f"{1e-22:.22f}"
    long = "9" * 60
    assert longest(bound({"const": f'a"\\{long}'}), b"9") == json.dumps(f'a"\\{long}')
