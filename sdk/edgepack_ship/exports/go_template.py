"""A part of Go's text/template, evaluated: what a Modelfile's TEMPLATE is written in and is held to.

It knows texts, ``{{ .Field }}``, ``{{ "text" }}``, ``if``, ``else if``, ``else``, ``range`` with two variables,
``end``, and of the functions ``and``, ``eq``, ``ne``, ``len`` and ``slice``, as the documentation of text/template
defines them. Trim markers (``{{-``) are not in it, since nothing here writes them. Ollama hands a template ``.System``
and ``.Messages``, after it has put messages of one role that follow one another together (``template/template.go``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"{}])*?) \}\}', re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[()]|[^\s()"]+)', re.DOTALL)
_ESCAPED = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]|\{\{|\{\Z|"""|\A"|"\Z|\ufeff')

Message = Mapping[str, str]
Value = str | int | bool | Sequence[Message]
Scope = Mapping[str, Value | Message]


@dataclass(frozen=True, slots=True)
class _Branch:
    """``if``: the first of the cases whose condition holds; an ``else`` has the condition ``true``."""

    cases: list[tuple[list[str], list[_Node]]]


@dataclass(frozen=True, slots=True)
class _Range:
    index: str
    over: list[str]
    body: list[_Node]


_Node = str | list[str] | _Branch | _Range


def literal(text: str) -> str:
    """Return what writes a text: itself, with what a template or a Modelfile would read otherwise as a Go string."""
    return _ESCAPED.sub(lambda found: '{{ "' + "".join(f"\\u{ord(each):04x}" for each in found[0]) + '" }}', text)


def messages_of(conversation: Sequence[Message]) -> tuple[str, list[Message]]:
    """Return ``.System`` and ``.Messages`` as Ollama makes them of a conversation."""
    system = "\n\n".join(each["content"] for each in conversation if each["role"] == "system")
    together: list[Message] = []
    for each in conversation:
        if together and together[-1]["role"] == each["role"] != "tool":
            before = together.pop()
            each = {**each, "content": f"{before['content']}\n\n{each['content']}"}
        together.append({"role": each["role"], "content": each["content"]})
    return system, together


def rendered(template: str, conversation: Sequence[Message]) -> str:
    """Return the prompt that Ollama makes of a conversation with a template. Raises ``ValueError`` for what is no
    template of this part of the language."""
    system, messages = messages_of(conversation)
    nodes, end = _parsed(_pieces(template), 0)
    if end != "":
        raise ValueError(f"{end!r} closes nothing")
    top: Scope = {"System": system, "Messages": messages}
    return "".join(_said(node, top, {"": top, "$": top}) for node in nodes)


_Pieces = list[tuple[bool, str]]


def _pieces(template: str) -> _Pieces:
    """Return texts and actions by turns: (whether it is an action, what it says)."""
    found: _Pieces = []
    at = 0
    while (start := template.find("{{", at)) >= 0:
        action = _ACTION.match(template, start)
        if action is None:
            raise ValueError(f"{template[start : start + 20]!r} begins no action")
        found += [(False, template[at:start]), (True, action[1])]
        at = action.end()
    found.append((False, template[at:]))
    found.reverse()  # what is next is taken from the end
    return found


def _parsed(pieces: _Pieces, depth: int) -> tuple[list[_Node], str]:
    """Return the nodes up to an ``else`` or an ``end``, and that action, "" at the end of the template."""
    nodes: list[_Node] = []
    while pieces:
        is_action, text = pieces.pop()
        if not is_action:
            nodes.append(text)
            continue
        words = _WORD.findall(text)
        if words[0] == "if":
            nodes.append(_branch(pieces, depth, words[1:]))
        elif words[0] == "range":  # range $i, $m := PIPELINE
            body, _ = _parsed(pieces, depth + 1)
            nodes.append(_Range(words[1].rstrip(","), words[4:], body))
        elif words[0] in ("else", "end"):
            if not depth:
                raise ValueError(f"{words[0]} closes nothing")
            return nodes, text
        else:
            nodes.append(words)
    if depth:
        raise ValueError("an end is missing")
    return nodes, ""


def _branch(pieces: _Pieces, depth: int, condition: list[str]) -> _Branch:
    cases = []
    while True:
        body, end = _parsed(pieces, depth + 1)
        cases.append((condition, body))
        if end == "end":
            return _Branch(cases)
        words = _WORD.findall(end)
        condition = words[2:] if words[1:2] == ["if"] else ["true"]


def _said(node: _Node, dot: Scope, names: Mapping[str, object]) -> str:
    match node:
        case str():
            return node
        case _Branch(cases):
            chosen = next((body for condition, body in cases if _value(condition, dot, names)), [])
            return "".join(_said(each, dot, names) for each in chosen)
        case _Range(index, over, body):
            messages = _value(over, dot, names)
            if not isinstance(messages, list):
                raise ValueError("a range over what is no list")
            return "".join(
                _said(each, {"Role": one["role"], "Content": one["content"]}, {**names, index: number})
                for number, one in enumerate(messages)
                for each in body
            )
        case _:
            return str(_value(node, dot, names))


def _value(words: Sequence[str], dot: Scope, names: Mapping[str, object]) -> object:
    """Return what a pipeline of one command gives."""
    left = list(reversed(words))
    values = _operands(left, dot, names)
    if left:
        raise ValueError(f"{left[-1]!r} is too much")
    return values


def _operands(left: list[str], dot: Scope, names: Mapping[str, object]) -> object:
    """Return the value of a command: a function with its arguments, or one operand."""
    function = left[-1] if left else ""
    if function not in ("and", "eq", "ne", "len", "slice"):
        return _operand(left, dot, names)
    left.pop()
    arguments = []
    while left and left[-1] != ")":
        arguments.append(_operand(left, dot, names))
    match function, arguments:
        case "and", [*_]:
            return next((each for each in arguments if not each), arguments[-1])
        case "eq", [one, other]:
            return one == other
        case "ne", [one, other]:
            return one != other
        case "len", [str() | list() as one]:
            return len(one)
        case "slice", [list() as one, int() as start]:
            return one[start:]
    raise ValueError(f"{function} of {len(arguments)} arguments")


def _operand(left: list[str], dot: Scope, names: Mapping[str, object]) -> object:
    word = left.pop()
    if word == "(":
        value = _operands(left, dot, names)
        if not left or left.pop() != ")":
            raise ValueError("a bracket is missing")
        return value
    if word.startswith('"'):
        return json.loads(word)
    if word.isdecimal():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    name, _, field = word.partition(".")
    scope = dot if name == "" else names.get(name)
    if not field:
        return scope
    if not isinstance(scope, Mapping) or field not in scope:
        raise ValueError(f"{word!r} is no field")
    return scope[field]
