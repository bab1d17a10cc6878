"""Schemas, regexes and grammars of strangers: what is accepted is enforced, the rest refused, and no process ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal, getcontext
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny_tokenizers as tiny
from limited import Ended, in_child

from edgepack.errors import SchemaError
from edgepack.structured.constrain import Constraint, Grammar, compile_grammar
from edgepack.text.tokenizer import Tokenizer

pytestmark = pytest.mark.hostile

TOKENIZER = Tokenizer.from_json(tiny.byte_level(), None, False)
STOP = 0
SWEPT, TOGETHER = 2000, 50  # schemas, and of them in one child
ANSWERS, TOKENS = 6, 60
Portion = Callable[[int], int]


def bound(**asked: Any) -> Grammar:
    grammar = compile_grammar(TOKENIZER, TOKENIZER.n_tokens, frozenset({STOP}), **asked)
    assert grammar is not None
    return grammar


def answer(grammar: Grammar, random: Random, tokens: int = TOKENS) -> str:
    """Walk through the masks at random, and close the answer in time."""
    room = len(grammar.write(grammar.closing.path)) + tokens
    constraint, ids = Constraint(grammar, room), list[int]()
    while not constraint.finished:
        token = random.choice(np.flatnonzero(constraint.allowed).tolist())
        if token == STOP:
            break
        closing = constraint.closing(token, room - len(ids))
        if closing is not None:
            ids += closing
            break
        constraint.accept(token)
        ids.append(token)
    return TOKENIZER.decode(ids)


class Schemas:
    """Makes schemas of all that a schema may have, sound and unsound, for one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.names: list[str] = []

    def make(self) -> dict[str, Any]:
        self.names = [f"d{n}" for n in range(self.random.choice((0, 0, 1, 3)))]
        schema = self.part(3)
        if self.names:
            schema["$defs"] = {name: self.part(2) for name in self.names}
        return schema

    def part(self, depth: int) -> dict[str, Any]:
        kinds = [self.number, self.number, self.text, self.values]
        if depth:
            kinds += [self.object, self.object, self.array, self.union, self.union, self.reference, self.both]
        return self.random.choice(kinds)(depth - 1)

    def number(self, depth: int) -> dict[str, Any]:
        random = self.random
        made: dict[str, Any] = {"type": random.choice(["integer", "number", "number", ["integer", "null"]])}
        edges = [0, 1, -1, 0.5, -0.5, 1.5, 3, 10, 99.95, 0.1, 1e-7, 1e15, 2**53, 2**63 - 1, 1e22, 1e300]
        for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if random.random() < 0.35:
                made[word] = random.choice([*edges, random.randint(-30, 30), round(random.uniform(-3, 3), 2)])
        if random.random() < 0.15:
            made["multipleOf"] = random.choice([1, 2, 3, 7, 60, 0.1, 0.01, 0.25, 0.3, 1e-9, 65537, 65539, 99991])
        return made

    def text(self, depth: int) -> dict[str, Any]:
        random = self.random
        made: dict[str, Any] = {"type": "string"}
        if random.random() < 0.4:
            made["minLength"] = random.choice([0, 1, 4, 30])
        if random.random() < 0.4:
            made["maxLength"] = random.choice([0, 1, 4, 40, 10**9])
        if random.random() < 0.3:
            made["pattern"] = random.choice(
                ["^a+$", "b", "^[0-9]{2,4}$", "[^x]y", "^(one|two)?$", "^.{3}$", "(", "a(?=b)"]
            )
        if random.random() < 0.15:
            made["format"] = random.choice(["date", "email", "uuid", "ipv4", "date-time", "time", "hostname", "regex"])
        return made

    def values(self, depth: int) -> dict[str, Any]:
        random = self.random
        some = [None, True, False, 0, 1, -7, 1.0, 0.5, 1e-7, 0.1 + 0.2, 1e22, 2**53 + 1, 10**400, "", "a", 'q"', "é\n"]
        some += [[], {}, [1, "a"], {"k": [None, 2.5]}, {"k": 10**20}]
        if random.random() < 0.3:
            return {"const": random.choice(some)}
        return {"enum": random.choices(some, k=random.randint(1, 4))}

    def object(self, depth: int) -> dict[str, Any]:
        random = self.random
        names = random.sample(["a", "b", "kind", 'q"', "é", "x y"], random.randint(0, 4))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.part(depth) for name in names}}
        made["required"] = random.sample(names, random.randint(0, len(names)))
        if random.random() < 0.5:
            made["additionalProperties"] = random.choice([False, False, True, {"type": "integer"}, self.part(depth)])
        if random.random() < 0.1:
            made["patternProperties"] = {"^z": self.part(depth)}
        if random.random() < 0.1:
            made[random.choice(["minProperties", "maxProperties", "not", "uniqueItems", "maxLenght"])] = 1
        return made

    def array(self, depth: int) -> dict[str, Any]:
        random = self.random
        made: dict[str, Any] = {"type": "array"}
        if random.random() < 0.8:
            made["items"] = random.choice([self.part(depth), self.part(depth), False])
        if random.random() < 0.3:
            made["prefixItems"] = [self.part(depth) for _ in range(random.randint(1, 3))]
        if random.random() < 0.5:
            made["minItems"] = random.choice([0, 1, 3])
        if random.random() < 0.5:
            made["maxItems"] = random.choice([0, 1, 3, 10**9])
        return made

    def union(self, depth: int) -> dict[str, Any]:
        random = self.random
        word = random.choice(["anyOf", "oneOf", "oneOf"])
        if random.random() < 0.3:
            return {word: [self.tagged(tag, depth) for tag in random.choices("xyz", k=random.randint(1, 3))]}
        return {word: [self.part(depth) for _ in range(random.randint(1, 3))]}

    def tagged(self, tag: str, depth: int) -> dict[str, Any]:
        properties = {"kind": {"const": tag}, "value": self.part(depth)}
        required = self.random.choice([["kind"], ["kind", "value"], ["value"]])
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def reference(self, depth: int) -> dict[str, Any]:
        if not self.names:
            return self.part(depth)
        return {"$ref": f"#/$defs/{self.random.choice([*self.names, *self.names, 'none'])}"}

    def both(self, depth: int) -> dict[str, Any]:
        return {"allOf": [self.part(depth), self.random.choice([self.number, self.text, self.object])(depth)]}


def exact(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def wrong(schema: dict[str, Any], seed: int) -> str | None:
    """Return what is wrong with the answers to a schema, None where it is refused or enforced."""
    try:
        grammar = bound(json_schema=schema)
    except SchemaError:
        return None
    random = Random(seed)
    getcontext().prec = 1000  # for the remainders of long numbers
    validator = jsonschema.Draft202012Validator(exact(json.dumps(schema)))
    for _ in range(ANSWERS):
        text = answer(grammar, random)
        values = exact(text)
        if not validator.is_valid(values):
            error = jsonschema.exceptions.best_match(validator.iter_errors(values))
            return f"{schema}: {text}: {error.message}"
        if any(not math.isfinite(number) or len(str(number)) > 100 for number in numbers(json.loads(text))):
            return f"{schema}: {text}"
    return None


def numbers(value: object) -> Iterator[float]:
    match value:
        case bool():
            pass
        case int() | float():
            yield value
        case list():
            for each in value:
                yield from numbers(each)
        case dict():
            for each in value.values():
                yield from numbers(each)


def test_answers_to_made_schemas_hold_what_is_accepted(portion: Portion) -> None:
    for first in range(0, portion(SWEPT), TOGETHER):
        found = in_child(
            lambda first=first: [
                each for seed in range(first, first + TOGETHER) if (each := wrong(Schemas(seed).make(), seed))
            ],
            seconds=300,
        )
        assert found.kind == "answer", found
        assert found.text == "[]", found


def chain(length: int, part: Callable[[dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """A schema of definitions, of which each refers to the next."""
    links = {f"d{n}": part({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": {"type": "string"}}}


def nested(depth: int, part: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = part(schema)
    return schema


def fan(width: int, depth: int) -> dict[str, Any]:
    """A schema whose definitions refer to the next one many times."""
    return chain(depth, lambda link: {"type": "object", "properties": {f"k{n}": link for n in range(width)}})


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


def objects(count: int, part: dict[str, Any], **more: Any) -> dict[str, Any]:
    names = [f"p{n}" for n in range(count)]
    return {"type": "object", "properties": dict.fromkeys(names, part), **more}


def rules(count: int, rule: str) -> str:
    return "start: r0\n" + "".join(rule.format(n, n + 1) for n in range(count)) + f'r{count}: "z"\n'


def inside(inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": False}


SELF = {"$ref": "#/$defs/a"}
MANY = [{"type": "object", "properties": {f"a{n}": {"type": "string"}}} for n in range(500)]
SCHEMAS: dict[str, Callable[[], object]] = {
    "chain of 1,000 objects": lambda: chain(1000, inside),
    "chain of 4,900 references": lambda: chain(4900, lambda link: link),
    "chain of 100,000 references": lambda: chain(100_000, lambda link: link),
    "chain of arrays": lambda: chain(
        1600, lambda link: {"type": "array", "items": {"anyOf": [link, {"type": "null"}]}}
    ),
    "chain of allOf": lambda: chain(2000, lambda link: {"allOf": [link, {"maxLength": 9}]}),
    "chain through properties": lambda: {
        "$ref": "#/properties/p0",
        "properties": {f"p{n}": {"$ref": f"#/properties/p{n + 1}"} for n in range(990)} | {"p990": {"type": "null"}},
    },
    "fan of references": lambda: fan(100, 40),
    "doubled allOf": lambda: chain(60, lambda link: {"allOf": [link, link]}),
    "doubled anyOf": lambda: chain(60, lambda link: {"anyOf": [link, link]}),
    "doubled oneOf": lambda: chain(60, lambda link: {"oneOf": [link, link]}),
    "cycle of one": lambda: {**SELF, "$defs": {"a": SELF}},
    "cycle of two": lambda: {**SELF, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": SELF}},
    "cycle through allOf": lambda: {**SELF, "$defs": {"a": {"allOf": [SELF, SELF]}}},
    "cycle through the top": lambda: {"allOf": [{"$ref": "#"}], "anyOf": [{"$ref": "#"}]},
    "object without a base": lambda: {**SELF, "$defs": {"a": inside(SELF)}},
    "array without a base": lambda: {**SELF, "$defs": {"a": {"type": "array", "items": SELF, "minItems": 2}}},
    "properties in themselves": endless,
    "600 objects in each other": lambda: nested(600, inside),
    "90,000 arrays in each other, as text": lambda: "[" * 90_000 + "]" * 90_000,
    "9,000 objects in each other, as text": lambda: '{"items":' * 9_000 + "{}" + "}" * 9_000,
    "anyOf in anyOf": lambda: nested(300, lambda inner: {"anyOf": [inner, {"type": "null"}]}),
    "a constant 400 deep": lambda: {"const": nested(400, lambda inner: {"a": inner})},
    "200,000 values": lambda: {"enum": list(range(200_000))},
    "9,000 long values": lambda: {"enum": [f"value {n} of many" for n in range(9_000)]},
    "9,000 numbers": lambda: {"enum": [n / 7 for n in range(9_000)]},
    "50,000 properties": lambda: objects(50_000, {"type": "string"}),
    "1,000 properties": lambda: objects(1_000, {"type": "string"}),
    "1,000 patterns": lambda: objects(1_000, {"type": "string", "pattern": "x.*y.*z"}),
    "500 pattern properties": lambda: {"patternProperties": {f"^.*{n}.*x": {"type": "null"} for n in range(500)}},
    "100,000 required keys": lambda: {"type": "object", "required": [str(n) for n in range(100_000)]},
    "anyOf of 500 objects": lambda: {"anyOf": MANY},
    "oneOf of 500 objects": lambda: {"oneOf": MANY},
    "allOf of 500 objects": lambda: {"allOf": MANY},
    "allOf of unions": lambda: {"allOf": [{"anyOf": MANY[n : n + 2]} for n in range(0, 60, 2)]},
    "a billion items": lambda: {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "items of items": lambda: nested(9, lambda inner: {"type": "array", "items": inner, "minItems": 1000}),
    "a billion letters": lambda: {"type": "string", "minLength": 10**9},
    "a billion multiples": lambda: {"type": "integer", "multipleOf": 10**9 + 7},
    "numbers of 4,000 digits": lambda: {"type": "integer", "minimum": 10**4000, "maximum": 10**4001},
    "a number that is too long to read": lambda: '{"const": ' + "9" * 5000 + "}",
    "infinity": lambda: '{"maximum": 1e999}',
    "tiny bounds": lambda: {"type": "number", "exclusiveMinimum": 5e-324, "maximum": 1e-323},
    "a pattern of counts": lambda: {"type": "string", "pattern": "^(((a{1,99}b?){1,99}c?){1,99}d?){1,99}$"},
    "a pattern of 200 KB": lambda: {"type": "string", "pattern": "a?" * 100_000},
}
REGEXES = {
    "count": "a{1,100000}", "a large count": "a{1,1000000000}", "count of counts": "((a{1,999}b){1,999}c){1,999}",
    "two counts": "[ab]*a[ab]{5000}[cd]*c[cd]{5000}", "any and a count": "(?s).*x.{9000}y", "stars": "(((a*)*)*)*" * 50,
    "optional letters": "a?" * 8000, "the same, twice": "(a{2}b)?" * 2000, "classes": r"[\p{L}--\p{Lu}]{9999}",
    "unicode": r"(\w|\W|\p{Greek}){4000}", "look-ahead": "a(?=b)", "look-behind": "(?<!a)b", "reference": r"(a)\1",
    "brackets": "(" * 8000 + ")" * 8000, "open brackets": "[" * 16_000, "flags": "(?i)" + "straße" * 1000,
    "words": "|".join(f"w{n}x" for n in range(2600)), "letters": "abcdefgh" * 2000, "a megabyte": "a" * 1_000_000,
    "nothing": "[^\x00-\U0010ffff]",
}  # fmt: skip
GRAMMARS = {
    "2,000 rules in a chain": lambda: rules(1990, 'r{}: "a" r{}\n'),
    "4,000 rules in a chain": lambda: rules(4000, 'r{}: "a" r{}\n'),
    "rules of rules": lambda: rules(1500, "r{0}: r{1} r{1} | r{1}\n"),
    "a rule of itself": lambda: "start: start",
    "nothing ends": lambda: 'start: "a" start start | start "b"',
    "everything ends": lambda: 'start: start start | "a" | ""',
    "brackets": lambda: "start: " + "(" * 9000 + '"a"' + ")" * 9000,
    "a schema in it": lambda: "start: %json " + json.dumps(chain(1500, inside)),
    "grammars in it": lambda: "start: " + "%lark {\nstart: " * 3000 + '"a"' + "\n}" * 3000,
    "terminals of terminals": lambda: rules(1500, "r{0}: (r{1} r{1})?\n").replace("r", "R").replace("staRt", "start"),
    "what is not": lambda: "start: A\nA: " + "~(" * 500 + '"a"' + ")" * 500,
    "both": lambda: "start: A\nA: " + " & ".join(f"/(?s:.*){n}(?s:.*)/" for n in range(200)),
}
BOMBS: dict[str, tuple[str, Callable[[], object]]] = {
    **{f"json_schema: {name}": ("json_schema", made) for name, made in SCHEMAS.items()},
    **{f"regex: {name}": ("regex", lambda text=text: text) for name, text in REGEXES.items()},  # type: ignore[misc]
    **{f"grammar: {name}": ("grammar", made) for name, made in GRAMMARS.items()},
}


def exploded(kind: str, made: Callable[[], object]) -> Ended:
    def work() -> str:
        grammar = bound(**{kind: made()})
        return answer(grammar, Random(0), 20)

    return in_child(work, seconds=90, gigabytes=2)


def test_no_schema_or_grammar_ends_or_holds_up_its_process(portion: Portion) -> None:
    names = list(BOMBS)
    Random(1).shuffle(names)
    for name in names[: portion(len(BOMBS))]:
        ended = exploded(*BOMBS[name])
        assert ended.kind in ("answer", "SchemaError"), (name, ended)
