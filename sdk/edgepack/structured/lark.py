"""From a JSON schema, a regex or a grammar of the caller's to the one form that llguidance is given: Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgepack.errors import SchemaError
from edgepack.structured.bounds import check_text, parts

# One way to write each character: a key with another escape would pass for another key. And an end to white space:
# deep indentation needs less, and a model that has lost its way writes it for ever.
_JSON = {
    "json_allowed_escapes": 'nrbtf\\"',
    "whitespace_pattern": r"[ \t\r\n]{1,64}",
    "coerce_one_of": False,
    "lenient": False,
}
# A call of a tool is read by a program alone.
_ONE_LINE = {**_JSON, "whitespace_pattern": " "}
# Where the text is certain, llguidance would allow only the token with which its tokenizer would write it.
_ALL_TOKENS = '\n%llguidance {"no_forcing": true}\n'
# What masks cannot do: count tokens, change the temperature, hide what was written.
_ATTRIBUTE = re.compile(r"^[?!\w-]+\[[^]\n]*\b(max_tokens|temperature|stop) *=", re.MULTILINE)
_QUOTED = re.compile(r""""((?:\\.|[^"\\\n])*)"|/((?:\\.|[^/\\\n])+)/""")
# A class of one character and an escaped one are that character; classes, \\d and the like, operators, counts are not.
_NO_LITERAL = re.compile(r"\[([^\\^])\]|\[(?:\\.|[^]\\])*\]|\\(\W)|\\\w|[$^.|?*+()]|\{[\d,]*\}")
_WORDS = 32  # that are worth a try
_HINTS = {
    "json_schema": "Ask for it in another way; the documentation of llguidance says what it can enforce.",
    "regex": "The syntax is that of Rust's regex crate, without look-around and references.",
    "grammar": "The syntax is llguidance's kind of Lark.",
}


def to_lark(kind: str, value: object, one_line: bool = False) -> str:
    """Return the grammar for a value of ``json_schema`` (a checked one), ``regex`` or ``grammar``.

    ``one_line``: JSON may have single spaces and no other white space.
    Raises ``SchemaError`` for what llguidance finds invalid or cannot enforce, with its reason.
    """
    from llguidance import LLMatcher

    if kind == "json_schema" and isinstance(value, Mapping):
        text = "start: %json " + json.dumps({**value, "x-guidance": _ONE_LINE if one_line else _JSON})
    elif not isinstance(value, str):
        raise SchemaError(f"{kind} is of type {type(value).__name__}.", hint="Pass a str.")
    else:
        check_text(kind, value)
        text = _regex(value) if kind == "regex" else _grammar(value)
    text += _ALL_TOKENS
    _, complaints = LLMatcher.validate_grammar_with_warnings(text)
    if not complaints:
        return text
    if "oneOf" in complaints[0]:
        place = _ambiguous(value) if isinstance(value, Mapping) else ""
        raise SchemaError(
            f"{kind}: {place}oneOf has branches that may fit the same answer.",
            hint="Say anyOf, or give the branches a required property with a constant of its own in each.",
        )
    raise SchemaError(f"{kind}: {reason(complaints[0])}.", hint=_HINTS[kind])


def literals(kind: str, value: object) -> list[str]:
    """Return what the patterns of a grammar may ask for among any other text.

    It is a guess, made because masks do not show such a word before it is complete: the runs of ordinary characters
    in each pattern, and what they are together from each of them to the last.
    """
    if isinstance(value, Mapping):
        patterns = [str(value.get("pattern", ""))]
    elif kind == "regex":
        patterns = [str(value)]
    else:
        patterns = [part[1] or part[2] or "" for part in _QUOTED.finditer(str(value))]
    found: dict[str, None] = {}
    for pattern in patterns:
        spelled = _NO_LITERAL.sub(lambda part: part[1] or part[2] or "\0", pattern)
        runs = [run for run in spelled.split("\0") if run]
        found |= dict.fromkeys(runs) | dict.fromkeys("".join(runs[start:]) for start in range(len(runs)))
    return [json.dumps(word, ensure_ascii=False)[1:-1] if kind == "json_schema" else word for word in found][:_WORDS]


def reason(complaint: str) -> str:
    """Return the sentence in a complaint of llguidance's, which has many lines."""
    if "no tokenizer" in complaint:
        return "it names tokens, and an answer has none but those of its text"
    lines = complaint.splitlines()
    sentence = next((line for line in reversed(lines) if line.startswith("error: ")), lines[0])
    return re.sub(r"^error: |^at 1\(8\): (failed to compile JSON schema: )?", "", sentence).strip(" .:")


def _ambiguous(schema: Mapping[str, Any]) -> str:
    """Return the place of the first oneOf that llguidance refuses, the top where it refuses none by itself."""
    from llguidance import LLMatcher

    for place, part in parts("/", schema):
        if "oneOf" in part:
            around = {name: schema[name] for name in ("$schema", "$defs", "definitions") if name in schema}
            alone = around | {"oneOf": part["oneOf"], "x-guidance": _JSON}
            if LLMatcher.validate_grammar_with_warnings("start: %json " + json.dumps(alone))[1]:
                return place
    return ""


def _regex(regex: str) -> str:
    from llguidance import regex_to_lark

    if (len(regex) - len(regex.rstrip("\\"))) % 2:  # would be dropped without a word
        raise SchemaError("regex: it ends in half an escape.", hint=_HINTS["regex"])
    return f"start: /{regex_to_lark(regex, use_ascii='d')}/"


def _grammar(grammar: str) -> str:
    if found := _ATTRIBUTE.search(grammar):
        raise SchemaError(f"grammar: a rule has the attribute {found[1]}.", hint="A mask cannot do that: remove it.")
    return grammar
