"""Bound answers: whatever a model would rather say, the text parses, validates and keeps to its length."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from edgepack.decoding.sample import Sampler, Sampling
from edgepack.errors import SchemaError
from edgepack.structured.closing import BYTES, Closing
from edgepack.structured.constrain import Constraint, Grammar, compile_grammar
from edgepack.structured.lark import to_lark
from edgepack.structured.vocabulary import of_bytes
from edgepack.text.detokenize import Detokenizer
from edgepack.text.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer.from_json(tiny.byte_level(), None, False)
SENTENCEPIECE = Tokenizer.from_json(tiny.sentencepiece(), 1, False)
STOPS = {BYTE_LEVEL: frozenset({0}), SENTENCEPIECE: frozenset({2})}
each_tokenizer = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "sentencepiece"])
SEEDS = st.integers(0, 2**32)
PADDING = 7  # rows of the embedding that have no token


def bound(tokenizer: Tokenizer, stops: frozenset[int] | None = None, **asked: Any) -> Grammar:
    stops = STOPS[tokenizer] if stops is None else stops
    grammar = compile_grammar(tokenizer, tokenizer.n_tokens + PADDING, stops, **asked)
    assert grammar is not None
    return grammar


def shortest(grammar: Grammar) -> int:
    """Return the fewest tokens that an answer may be given."""
    try:
        Constraint(grammar, 0)
    except SchemaError as error:
        needed = re.search(r"max_tokens=(\d+) or more", str(error))
        assert needed is not None
        return int(needed[1])
    return 0


class Answer:
    """What a model with random logits says, in the way that a generation asks for it."""

    def __init__(
        self, tokenizer: Tokenizer, grammar: Grammar, limit: int, seed: int, *, at_start: bool = True, mild: float = 1
    ) -> None:
        random = np.random.default_rng(seed)
        constraint = Constraint(grammar, limit, at_start=at_start)
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        self.ids: list[int] = []
        self.cut = False
        while not constraint.finished and len(self.ids) < limit:
            logits = random.normal(scale=mild, size=tokenizer.n_tokens + PADDING).astype(np.float32)
            token = sampler(logits, constraint.allowed)
            if token in grammar.stop_ids:
                break
            closing = constraint.closing(token, limit - len(self.ids))
            if closing is not None:
                self.cut = True
                for each in closing:
                    assert constraint.allowed[each]
                    constraint.accept(each)
                self.ids += closing
                break
            constraint.accept(token)
            self.ids.append(token)
        assert len(self.ids) <= limit
        assert constraint.allowed[list(grammar.stop_ids)].all()
        detokenizer = Detokenizer(tokenizer, at_start=at_start)
        self.text = "".join(map(detokenizer.push, self.ids))
        assert not detokenizer.unfinished
        assert not tokenizer.special_ids.intersection(self.ids)
        assert not grammar.stop_ids.intersection(self.ids)
        assert max(self.ids, default=0) < tokenizer.n_tokens


PATTERNS = ["^[0-9]{3}-[A-Z]+$", "foo", r"\.py$", "^[^ ]+ [^ ]+$", "^(red|green|light blue)$", "é", r"^\w+@\w+$"]
FORMATS = ["date-time", "date", "email", "ipv4", "uuid", "uri"]
SCALARS = st.none() | st.booleans() | st.integers(-999, 999) | st.sampled_from(["", "the sea", 'a "b"', "\\", "東京\n"])
NAMES = st.sampled_from(["name", "the sea", "ä", 'quo"te', "back\\slash", "x"])


def texts() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
    )
    patterns = st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern})
    formats = st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name})
    return st.just({"type": "string"}) | lengths | patterns | formats


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    ranges = st.tuples(st.sampled_from(["integer", "number"]), st.integers(-200, 200), st.integers(0, 300)).map(
        lambda drawn: {"type": drawn[0], "minimum": drawn[1], "maximum": drawn[1] + drawn[2]}
    )
    return ranges | st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": "integer", "multipleOf": 7}])


LEAVES = (
    texts()
    | numbers()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}])
    | SCALARS.map(lambda value: {"const": value})
    | st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values})
)


def composed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def objects(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(NAMES, inner, max_size=4))
        required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
        others = draw(st.sampled_from([True, False, {"type": "integer"}]))
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}

    @st.composite
    def arrays(draw: st.DrawFn) -> dict[str, Any]:
        least = draw(st.integers(0, 3))
        return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 3))}

    return objects() | arrays() | st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})


SCHEMAS = st.recursive(LEAVES, composed, max_leaves=6)


@each_tokenizer
@settings(max_examples=80, deadline=None)
@given(schema=SCHEMAS, seed=SEEDS, more=st.integers(0, 40))
def test_every_answer_parses_and_validates(tokenizer: Tokenizer, schema: dict[str, Any], seed: int, more: int) -> None:
    grammar = bound(tokenizer, json_schema=schema)
    limit = shortest(grammar) + more
    answer = Answer(tokenizer, grammar, limit, seed)
    jsonschema.validate(json.loads(answer.text), schema)


REGEXES = [
    "[a-z]{3,9}", "(the|sea| house)+", " the.*sea", "é{2,4}|東京", "a*", "", ".*foo.*", "[^a]{2}x?", r"\d+(\.\d+)?",
    " +b", "(?i)hello, (world|sea)!", r"a/b\\?", '"[^"]*"',
]  # fmt: skip


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("regex", REGEXES)
@each_tokenizer
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, more=st.integers(0, 20))
def test_every_answer_matches_the_whole_regex(
    tokenizer: Tokenizer, regex: str, at_start: bool, seed: int, more: int
) -> None:
    grammar = bound(tokenizer, regex=regex)
    answer = Answer(tokenizer, grammar, shortest(grammar) + more, seed, at_start=at_start)
    assert re.fullmatch(regex, answer.text)


GRAMMARS = {
    'start: greeting name+\ngreeting: /(hello|world)/\nname: ", " /[a-z]{2,5}/': r"(hello|world)(, [a-z]{2,5})+",
    'start: "(" start ")" | "é" | "long " WORD\nWORD: /[^()]*/ "!"': None,
    'start: %json {"type": "array", "items": {"type": "integer"}} "."': r"\[.*\]\.",
}


@pytest.mark.parametrize("lark", GRAMMARS)
@each_tokenizer
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, more=st.integers(0, 20))
def test_every_answer_follows_the_grammar(tokenizer: Tokenizer, lark: str, seed: int, more: int) -> None:
    grammar = bound(tokenizer, grammar=lark)
    text = Answer(tokenizer, grammar, shortest(grammar) + more, seed).text
    pattern = GRAMMARS[lark]
    if pattern is None:
        depth = len(text) - len(text.lstrip("("))
        pattern = rf"\({{{depth}}}(é|long [^()]*!)\){{{depth}}}"
    assert re.fullmatch(pattern, text, re.DOTALL)


PIECES = ["the sea", " the", "  sea", "the", "hello, world", "é", "東京", "a", " ", "<think>", "The word ", "she said"]
LANGUAGES = st.lists(st.lists(st.sampled_from(PIECES), max_size=3).map("".join), min_size=1, max_size=5).filter(any)


@pytest.mark.parametrize("at_start", [True, False])
@each_tokenizer
@settings(max_examples=60, deadline=None)
@given(language=LANGUAGES, random=st.randoms(use_true_random=False), more=st.integers(0, 8))
def test_the_mask_and_the_closing_are_those_of_the_text(
    tokenizer: Tokenizer, at_start: bool, language: list[str], random: Random, more: int
) -> None:
    """Against the definition: the language is a few texts, all of whose beginnings are known."""
    grammar = bound(tokenizer, regex="|".join(map(re.escape, language)))
    texts = [text.encode() for text in language]
    limit = shortest(grammar) + more
    constraint = Constraint(grammar, limit, at_start=at_start)
    text, drops = b"", at_start and tokenizer.strips_space
    for left in range(limit, 0, -1):
        allowed = constraint.allowed
        shown = [tokenizer.token_bytes(token) for token in range(tokenizer.n_tokens)]
        fits = [bool(data) and _begins(texts, text + (data.removeprefix(b" ") if drops else data)) for data in shown]
        for stop in grammar.stop_ids:
            fits[stop] = text in texts
        assert np.flatnonzero(allowed).tolist() == np.flatnonzero(fits).tolist()
        assert constraint.finished == (text in texts and sum(fits) == 1)
        token = random.choice(np.flatnonzero(allowed).tolist())
        if token in grammar.stop_ids:
            break
        data = shown[token].removeprefix(b" ") if drops else shown[token]
        closing = constraint.closing(token, left)
        if closing is not None:
            assert len(closing) <= left
            rest = b"".join(shown[each] for each in closing)
            assert text + (rest.removeprefix(b" ") if drops else rest) in texts
            # Not before it has to be: some text that begins so takes more tokens than there may be.
            rests = [other[len(text + data) :] for other in texts if other.startswith(text + data)]
            assert max(len(grammar.write(rest)) for rest in rests) >= left
            break
        constraint.accept(token)
        text, drops = text + data, False
    else:
        assert text in texts


def _begins(texts: list[bytes], start: bytes) -> bool:
    return any(text.startswith(start) for text in texts)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"json_schema": {"type": "strin"}}, r"json_schema: \$.type: 'strin' is not valid"),
        ({"json_schema": {"minItems": "x"}}, r"json_schema: \$.minItems: 'x' is not of type 'integer'"),
        ({"json_schema": "{"}, "json_schema is not JSON: Expecting property name"),
        ({"json_schema": "[1]"}, "json_schema is of type list"),
        ({"json_schema": 7}, "json_schema is of type int"),
        ({"json_schema": False}, "json_schema is of type bool"),
        ({"json_schema": {"const": {1, 2}}}, "json_schema is not JSON"),
        ({"json_schema": {"maximum": float("nan")}}, "json_schema is not JSON"),
        ({"json_schema": {"$schema": "https://example.org/mine"}}, "json_schema: .schema is 'https://example.org/mine'"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "json_schema: .*none"),
        ({"json_schema": {"$ref": "https://example.org/other"}}, "json_schema: .*other"),
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "json_schema: Unsatisfiable schema"),
        ({"json_schema": {"type": "string", "pattern": "^a$", "minLength": 2}}, "json_schema: "),
        ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema: unclosed group"),
        ({"json_schema": {"type": "string", "pattern": "a(?=b)"}}, "json_schema: look-around"),
        ({"json_schema": {"const": "\x01"}}, "json_schema: no answer was found"),
        ({"json_schema": {"type": "string", "pattern": r"\p{X}"}}, "json_schema: Unicode property not found"),
        ({"regex": "("}, "regex: unclosed group"),
        ({"regex": "a(?=b)"}, "regex: look-around"),
        ({"regex": r"(a)\1"}, "regex: backreferences are not supported"),
        ({"regex": "a\\"}, "regex: it ends in half an escape"),
        ({"regex": 7}, "regex is of type int"),
        ({"grammar": "start: b"}, "grammar: .*unknown name: \"b\""),
        ({"grammar": ""}, "grammar: no start rule found"),
        ({"grammar": "root ::= 'a'"}, "grammar: "),
        ({"grammar": 'start: "a" start'}, "grammar: no answer was found"),
        ({"grammar": 'start: <|end|> "a"'}, "grammar: it names tokens"),
        ({"grammar": 'start: <[5]> "a"'}, "grammar: it names tokens"),
        ({"grammar": 'start: x "b"\nx[max_tokens=3]: /a*/'}, "grammar: a rule has the attribute max_tokens"),
        ({"grammar": 'start: x "b"\nx[capture, stop="c"]: /a*/'}, "grammar: a rule has the attribute stop"),
        ({"grammar": 'start: x "b"\nx[temperature=0.5]: /a*/'}, "grammar: a rule has the attribute temperature"),
        ({"grammar": b"start: 'a'"}, "grammar is of type bytes"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex are given together"),
    ],
)  # fmt: skip
def test_what_cannot_bind_an_answer_is_refused(asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SchemaError, match=f"^{complaint}") as raised:
        bound(BYTE_LEVEL, **asked)
    assert raised.value.hint
    assert "\n" not in str(raised.value)


UNENFORCED: dict[str, object] = {
    "not": {"type": "string"}, "if": {}, "uniqueItems": True, "contains": {}, "propertyNames": {"maxLength": 3},
    "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {}}, "unevaluatedProperties": False,
    "oneOf": [{"type": "string"}, {"maxLength": 3}], "format": "iri", "$dynamicRef": "#a", "minProperties": 2,
    "maxLenght": 3, "then": {}, "nullable": True, "dependencies": {"a": ["b"]}, "additionalItems": False,
    "x-guidance": {"lenient": True},
}  # fmt: skip


@pytest.mark.parametrize("keyword", UNENFORCED)
@pytest.mark.parametrize("place", ["top", "property", "item", "option", "definition"])
def test_a_keyword_that_would_not_be_enforced_is_refused_wherever_it_is(keyword: str, place: str) -> None:
    part = {keyword: UNENFORCED[keyword]}
    schema: Any = {
        "top": part,
        "property": {"type": "object", "properties": {"a": part}, "required": ["a"]},
        "item": {"type": "array", "items": part},
        "option": {"anyOf": [{"type": "null"}, part]},
        "definition": {"$ref": "#/$defs/a", "$defs": {"a": part}},
    }[place]
    with pytest.raises(SchemaError, match=keyword.lstrip("$")):
        bound(BYTE_LEVEL, json_schema=schema)


def test_a_keyword_of_another_draft_binds_nothing_and_is_refused() -> None:
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array"}
    bound(BYTE_LEVEL, json_schema=old | {"items": [{"type": "null"}], "additionalItems": False})
    with pytest.raises(SchemaError, match="prefixItems"):
        bound(BYTE_LEVEL, json_schema=old | {"prefixItems": [{"type": "null"}]})


def test_notes_and_extensions_are_no_keywords() -> None:
    notes = {"title": "t", "description": "d", "default": 1, "examples": [2], "deprecated": True, "x-order": 1}
    grammar = bound(BYTE_LEVEL, json_schema={"$comment": "c", "properties": {"title": notes}, "type": "object"})
    assert shortest(grammar) > 0


class Modelled:
    """As pydantic's models: a class that knows its schema."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Modelled, r'\{\s*"a"\s*:\s*1\s*\}'),
        (Modelled.model_json_schema(), r'\{\s*"a"\s*:\s*1\s*\}'),
        (MappingProxyType({"const": 7}), "7"),
        ('{"const": "é"}', '"é"'),
        (True, r"\{.*\}"),
    ],
)
def test_a_schema_may_be_given_in_many_ways(given: Mapping[str, Any], text: str) -> None:
    grammar = bound(BYTE_LEVEL, json_schema=given)
    assert re.fullmatch(text, Answer(BYTE_LEVEL, grammar, 20, 1).text, re.DOTALL)
    again = bound(BYTE_LEVEL, **json.loads(json.dumps(grammar.asked)))
    assert again.asked == grammar.asked


def test_nothing_asked_binds_nothing() -> None:
    assert compile_grammar(BYTE_LEVEL, 400, frozenset()) is None


def test_a_limit_below_the_shortest_answer_is_refused_before_anything_is_said() -> None:
    grammar = bound(BYTE_LEVEL, json_schema={"type": "string", "minLength": 40})
    least = shortest(grammar)
    assert least > 20
    with pytest.raises(SchemaError, match=f"may have {least - 1} tokens, .* json_schema has {least}"):
        Constraint(grammar, least - 1)
    assert len(Answer(BYTE_LEVEL, grammar, least, 1).ids) == least


def test_a_key_has_one_spelling_so_that_it_cannot_pass_for_another() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"const": 2}}
    constraint = Constraint(bound(SENTENCEPIECE, json_schema=schema), 100)
    for character in b'{"\\':
        constraint.accept(3 + character)
    assert set(bytes(np.flatnonzero(constraint.allowed[3:259]).tolist())) == set(b'nrbtf"\\')


def test_white_space_comes_to_an_end() -> None:
    constraint = Constraint(bound(SENTENCEPIECE, json_schema=True), 1000)
    constraint.accept(3 + ord("{"))
    for _ in range(64):
        assert constraint.allowed[3 + ord(" ")]
        constraint.accept(3 + ord(" "))
    assert not constraint.allowed[[3 + ord(" "), 3 + ord("\n")]].any()
    assert constraint.allowed[[3 + ord("}"), 3 + ord('"')]].all()


def test_tokens_without_text_are_never_allowed_and_stops_only_at_the_end() -> None:
    think = next(t for t in range(BYTE_LEVEL.n_tokens) if BYTE_LEVEL.token(t) == "<think>")
    grammar = bound(BYTE_LEVEL, frozenset({think}), regex="(?s).{1,9}")
    constraint = Constraint(grammar, 9)
    allowed = constraint.allowed
    assert not allowed[[0, 1, think, *range(BYTE_LEVEL.n_tokens, BYTE_LEVEL.n_tokens + PADDING)]].any()
    constraint.accept(BYTE_LEVEL.encode("a")[0])
    assert constraint.allowed[think]
    assert not constraint.finished
    # As an ordinary token it is text.
    assert Constraint(bound(BYTE_LEVEL, regex="(?s).{1,9}"), 9).allowed[think]


def test_a_stop_may_lie_outside_of_the_rows_or_be_missing() -> None:
    grammar = bound(BYTE_LEVEL, frozenset({100_000}), regex="ab?")
    constraint = Constraint(grammar, 9)
    constraint.accept(BYTE_LEVEL.encode("a")[0])
    assert np.flatnonzero(constraint.allowed).tolist() == BYTE_LEVEL.encode("b")
    constraint.accept(BYTE_LEVEL.encode("b")[0])
    assert constraint.finished
    assert not constraint.allowed.any()


def test_a_token_that_is_not_allowed_is_not_accepted() -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        for token in (tokenizer.encode("b")[-1], 1, tokenizer.n_tokens):  # another text, and two tokens without any
            with pytest.raises(ValueError, match="not allowed"):
                Constraint(bound(tokenizer, regex="ab"), 9).accept(token)


TOUGH: list[dict[str, Any]] = [
    {"json_schema": {"type": "array", "items": {"type": "string", "pattern": "^[^ ]+ [^ ]+$"}}},
    {"json_schema": {"patternProperties": {"^x-.*z$": {"type": "null"}}, "additionalProperties": False}},
    {"json_schema": {"type": "array", "items": {"type": "object", "properties": {
        f"p{index}": {"type": "string", "pattern": pattern} for index, pattern in enumerate([*PATTERNS, "a.*b.*c"])
    }, "required": [f"p{index}" for index in range(0, len(PATTERNS), 2)], "additionalProperties": False}}},
    {"json_schema": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "$defs": {"tree": {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
                       "size": {"type": "number"}, "kind": {"enum": ["leaf", "branch", "root"]}},
        "required": ["kids", "kind"], "additionalProperties": False}}}},
    {"json_schema": {"$ref": "#/$defs/list", "$defs": {"list": {"anyOf": [
        {"type": "object", "properties": {"first": {"type": "string"}, "rest": {"$ref": "#/$defs/list"}},
         "required": ["rest"], "additionalProperties": False}, {"type": "null"}]}}}},
    {"json_schema": {"type": "object", "additionalProperties": {"allOf": [
        {"type": "object", "properties": {"a": {"type": "string", "format": "email"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "integer", "minimum": 100}}, "required": ["b"]}]}}},
    {"json_schema": {"type": "array", "items": {"type": "object", "properties": {
        "size": {"type": "number"}, "note": {"type": "string", "pattern": "foo"},
        "body": {"type": "object", "properties": {f"k{n}": {"type": "string", "minLength": 12} for n in range(9)},
                 "required": [f"k{n}" for n in range(9)]},
        "rows": {"type": "array", "minItems": 9, "items": {"type": "object", "required": ["id"], "properties": {
            "id": {"type": "string", "format": "uuid"}, "at": {"type": "integer", "minimum": 700}}}}},
        "required": ["body", "rows"], "additionalProperties": False}}},
    {"json_schema": {"type": "array", "items": {"type": "integer", "multipleOf": 60, "minimum": 31}}},
    {"json_schema": {"type": "object", "required": ["address", "version"], "properties": {
        "address": {"type": "string", "pattern": r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}}}},
    {"regex": r"(?s).*\.[^a]*b.*(end|stop)!"},
    {"regex": r"(\(.*\)|\[.*\]|\{.*\})*"},
    *({"grammar": lark} for lark in sorted(GRAMMARS)),
]  # fmt: skip


@pytest.mark.parametrize("asked", TOUGH)
@each_tokenizer
def test_no_answer_is_closed_while_there_is_room(tokenizer: Tokenizer, asked: dict[str, Any]) -> None:
    grammar = bound(tokenizer, **asked)
    for seed in range(6):
        random, constraint = np.random.default_rng(seed), Constraint(grammar, 10_000)
        for _ in range(120):
            allowed = np.flatnonzero(constraint.allowed)
            token = int(random.choice(allowed))
            if token in grammar.stop_ids:
                break
            assert constraint.closing(token, 5_000) is None
            constraint.accept(token)


def test_the_shortest_answer_is_short() -> None:
    circle, square = ({"type": "object", "properties": {"kind": {"const": name}, size: {"type": "integer"}},
                       "required": ["kind", size], "additionalProperties": False}
                      for name, size in (("circle", "r"), ("rectangle", "width")))  # fmt: skip
    shapes = {"type": "array", "items": {"anyOf": [square, circle]}, "minItems": 20}
    assert bound(BYTE_LEVEL, json_schema=shapes).closing.path == b"[%b]" % b",".join([b'{"kind":"circle","r":0}'] * 20)
    words = {"type": "object", "properties": {f"k{n}": {"enum": ["long one", "abc", "b"]} for n in range(30)}}
    path = bound(BYTE_LEVEL, json_schema=words | {"required": list(words["properties"])}).closing.path
    assert set(json.loads(path).values()) == {"b"}


@pytest.mark.parametrize(
    ("schema", "least"),
    [
        ({"type": "string", "pattern": r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"}, 8),
        ({"type": "string", "pattern": "zz.*qq.*!"}, 7),
        ({"type": "string", "minLength": 5000}, 5002),
        ({"type": "integer", "multipleOf": 60, "minimum": 31}, 2),
        ({"type": "integer", "multipleOf": 360, "minimum": 181}, 3),
    ],
)
def test_an_answer_is_found_where_masks_do_not_show_the_way(schema: dict[str, Any], least: int) -> None:
    path = bound(BYTE_LEVEL, json_schema=schema).closing.path
    jsonschema.validate(json.loads(path), schema)
    assert least <= len(path) <= least + 2


class Counted:
    """A matcher that counts what it is asked to do: bytes to move by, and masks."""

    def __init__(self, grammar: str) -> None:
        self._matcher = LLMatcher(of_bytes(), grammar, log_level=0)
        self.work = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def consume_tokens(self, tokens: list[int]) -> bool:
        self.work += len(tokens)
        return self._matcher.consume_tokens(tokens)

    def rollback(self, count: int) -> bool:
        self.work += count
        return self._matcher.rollback(count)

    def compute_bitmask(self) -> bytes:
        self.work += 1
        return self._matcher.compute_bitmask()


@pytest.mark.parametrize(
    ("regex", "found", "most"),
    [
        (r"\d+\.\d+\.\d+", True, 10_000),
        ("x[yz]{30000}", False, 60_000),
        (r"[^a]*bcde[^a]*fghi", False, 60_000),
    ],
)
def test_a_search_is_bounded_also_where_nothing_is_found(regex: str, found: bool, most: int) -> None:
    counted = Counted(to_lark("regex", regex))
    closing = Closing(cast("LLMatcher", counted), frozenset(BYTES))
    assert closing.find() == found
    assert counted.work <= most


def test_a_part_may_refer_to_what_it_does_not_carry() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/properties/b", "minLength": 2}, "b": {"type": "string"}},
    }
    grammar = bound(BYTE_LEVEL, json_schema=schema | {"required": ["a"]})
    assert len(json.loads(grammar.closing.path)["a"]) == 2


def test_where_no_closing_is_found_the_answer_ends_and_nothing_has_changed() -> None:
    constraint = Constraint(bound(BYTE_LEVEL, regex="a(b|x[yz]{30000}|cd)"), 40_000)
    constraint.accept(_token(b"a"))
    closing = constraint.closing(_token(b"x"), 39_999)
    assert closing == [_token(b"b")]
    assert constraint.closing(_token(b"c"), 10) is None
    constraint.accept(_token(b"c"))
    assert constraint.closing(_token(b"d"), 1) is None
    constraint.accept(_token(b"d"))
    assert constraint.finished


def _token(text: bytes) -> int:
    return next(token for token in range(BYTE_LEVEL.n_tokens) if BYTE_LEVEL.token_bytes(token) == text)


def test_a_closing_has_no_byte_whose_only_token_is_a_stop() -> None:
    for regex, text in (("a[a-z]*(]|!{3})", b"a!!!"), ("a(b]|cde{2}f)", b"acdeef")):
        assert bound(BYTE_LEVEL, frozenset({_token(b"]")}), regex=regex).closing.path == text


def test_a_closing_is_written_without_a_stop_that_has_text() -> None:
    grammar = bound(BYTE_LEVEL, frozenset({_token(b" hello")}), regex="a hello, hello")
    assert Answer(BYTE_LEVEL, grammar, shortest(grammar), 1).text == "a hello, hello"
    assert shortest(grammar) > len(BYTE_LEVEL.encode("a hello, hello"))


def test_to_ask_for_a_closing_changes_nothing() -> None:
    constraint = Constraint(bound(BYTE_LEVEL, regex="[ab]{1,3}(x{8}|y)z"), 20)
    for token in (_token(b"a"), _token(b"b"), _token(b"x"), _token(b"y")):
        for left in (1, 3, 20):
            if constraint.allowed[token]:
                constraint.closing(token, left)
    for byte in b"abx":
        token = _token(bytes([byte]))
        assert constraint.closing(_token(b"a"), 20) is None or byte == ord("x")
        assert constraint.closing(token, 20) is None
        constraint.accept(token)
    other = Constraint(bound(BYTE_LEVEL, regex="a(x{8}|y)z"), 20)
    other.accept(_token(b"a"))
    assert other.closing(_token(b"y"), 20) is None
    other.accept(_token(b"x"))
    assert other.closing(_token(b"x"), 8) is None
    assert constraint.closing(_token(b"x"), 8) is None
    closing = constraint.closing(_token(b"x"), 7)
    assert closing is not None
    assert BYTE_LEVEL.decode(closing) == "xxxxxxxz"


def test_the_answers_of_one_grammar_do_not_disturb_each_other() -> None:
    grammar = bound(BYTE_LEVEL, json_schema={"type": "array", "items": {"type": "string"}, "minItems": 2})
    alone = [Answer(BYTE_LEVEL, grammar, 30, seed).ids for seed in range(3)]
    first, second = Constraint(grammar, 30), Constraint(grammar, 30)
    for token in alone[0][:4]:
        first.closing(token, 20)
        first.accept(token)
    assert second.allowed.tolist() == Constraint(grammar, 30).allowed.tolist()
    assert [Answer(BYTE_LEVEL, grammar, 30, seed).ids for seed in range(3)] == alone


def test_a_vocabulary_is_made_once_and_goes_with_its_tokenizer() -> None:
    tokenizer = Tokenizer.from_json(tiny.byte_level(), None, False)
    one = compile_grammar(tokenizer, 400, frozenset({0}), regex="a")
    two = compile_grammar(tokenizer, 400, frozenset({1}), regex="b")
    assert one is not None
    assert two is not None
    assert one.vocabulary is two.vocabulary
    vocabulary = weakref.ref(one.vocabulary)
    del tokenizer, one, two
    gc.collect()
    assert vocabulary() is None


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "light blue"]}, "minItems": 1},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "address": {"$ref": "#/$defs/address"},
    },
    "required": ["name", "age", "email", "tags", "code"],
    "additionalProperties": False,
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "next": {"$ref": "#/$defs/address"}},
            "required": ["street"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["llama-3.2", "phi-3.5-mini", "qwen3", "smollm2"])
def test_real_tokenizers_say_what_fits(shared: Path, name: str) -> None:
    data = (shared / "tokenizers" / name / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_json(data, None, False)
    stops = frozenset(sorted(tokenizer.special_ids)[:2])
    text = (
        '{"name": "Zoë Ångström 👩‍🚀", "age": 42,\n  "email": "zoe@example.org", "tags": ["red", "light blue"],'
        ' "code": "ABC-1234", "address": {"street": "1 Sea Road, 東京", "next": {"street": ""}}}'
    )
    grammar = bound(tokenizer, stops, json_schema=PERSON)
    ids = tokenizer.encode(text)
    cut = []
    for limit in range(shortest(grammar), len(ids) + 1):
        constraint, answer = Constraint(grammar, limit), []
        for index, token in enumerate(ids):
            assert constraint.allowed[token]
            closing = constraint.closing(token, limit - index)
            if closing is not None:
                answer += closing
                break
            constraint.accept(token)
            answer.append(token)
        assert len(answer) <= limit
        cut.append(tokenizer.decode(answer))
        jsonschema.validate(json.loads(cut[-1]), PERSON)
    assert cut[-1] == text
    assert text not in cut[:-1]
    for seed in range(3):
        answer_of_noise = Answer(tokenizer, grammar, shortest(grammar) + 40, seed, mild=3).text
        jsonschema.validate(json.loads(answer_of_noise), PERSON)
