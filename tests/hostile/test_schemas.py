"""Schemas, regexes and grammars of strangers: what is accepted is enforced, the rest refused, and nothing ends the process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
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
            made["pattern"] = random.choice(["^a+$", "b", "^[0-9]{2,4}$", "[^x]y", "^(one|two)?$", "^.{3}$", "(", "a(?=b)"])
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
