"""How models write tool calls: one row a format, chosen by what a chat template writes itself.

An answer is text, then marked calls, or nothing but calls whose mark is a special token and so has no text. Small
models leave the mark out, or write code in a fence: where nothing else is said, JSON is a call as well. What is found
is as the model wrote it: whether it is a call of a known tool with valid arguments is not known here. What stands
between the marks is read by ``edgepack.text.tool_readers``.
Every character is looked at a bounded number of times, because a hostile text can be as long as a context.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgepack.errors import SchemaError, ToolCallError
from edgepack.text.tool_readers import Reader, braced, bracketed, objects, pythonic, tagged
from edgepack.text.tool_values import after_space, json_at

# The templates of families differ in the key; models also write the other one.
ARGUMENTS = ("arguments", "parameters")

# The beginning of a call that JSON cannot read to its end: its name, perhaps cut, and perhaps the key that follows.
# No two repetitions stand side by side, so that what does not match is given up in linear time.
_HEAD = re.compile(
    r'\[?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>[^"]*)'
    r'(?:(?P<closed>")(?P<key>\s*,\s*"(?:arguments|parameters)")?)?'
)

_FENCE = re.compile(r"```(?:json|JSON)?\s*")


@dataclass(frozen=True, slots=True)
class Wording:
    """How a call is written whose arguments are JSON: after ``before``, in which ``{name}`` stands for the tool's, an
    object with its name and the ``key`` of its arguments, "" where they stand alone; ``listed``: in a list."""

    before: str
    key: str = "arguments"
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write calls: what a reader reads between ``opening`` and ``closing``, of JSON where nothing else is
    said an object or a list of objects.

    ``markers``: what a template that teaches the format has in its text, backslashes aside, all of them.
    ``inside``: the marks that stand between those two; some tokenizers have them as special tokens.
    ``untyped``: every argument is written as a text, and its schema alone says what it is.
    ``bare``: the character that an answer without the opening mark begins with when it is nothing but calls, None
    where the mark is always text. ``separator`` joins several objects after one mark.
    ``in_system``: the template takes the definitions from the field ``tools`` of a system message, as text.
    ``wording``: how one call is written, None where it is not JSON.
    """

    name: str
    markers: tuple[str, ...]
    opening: str
    closing: str = ""
    bare: str | None = None
    separator: str | None = None
    in_system: bool = False
    reads: Reader = objects
    inside: tuple[str, ...] = ()
    untyped: bool = False
    wording: Wording | None = None

    def split(self, text: str, names: Collection[str], start: int) -> tuple[str, list[Any]]:
        """Return the text without its calls, and the JSON of each call; the text as it is where it has none.

        ``names`` are the tools', by which the beginning of a call is told from another JSON answer. What stands before
        ``start`` was only thought.
        Raises ``ToolCallError`` for a text that begins a call and does not end it in the format.
        """
        at = after_space(text, start)
        bare = self._bare_calls(text, at, names)
        if bare is None:
            bare = _alone(text, at, names)
        if bare is not None:
            return (text[:start].strip(), bare) if bare else (text, [])
        begin = text.find(self.opening, start)
        if begin < 0:
            return text, []
        pieces, calls, end = [], [], 0
        while begin >= 0:
            pieces.append(text[end:begin])
            values, end = self._values(text, begin + len(self.opening))
            calls += values
            if self.closing and text.startswith(self.closing, end):
                end += len(self.closing)
            elif end < len(text) and not text.startswith(self.opening, end):
                raise self._followed(text, end)
            begin = text.find(self.opening, end)
        pieces.append(text[end:])
        return "\n".join(piece.strip() for piece in pieces if piece.strip()), calls

    def _bare_calls(self, text: str, at: int, names: Collection[str]) -> list[Any] | None:
        """Return the calls of an answer that is nothing but JSON, None for one that is not.

        This goes before the search for marks, because a mark inside a string is none.
        """
        if self.bare is None or not text.startswith(self.bare, at):
            return None
        try:
            values, end = self._values(text, at)
        except ToolCallError:
            if _begins_call(text[at:], names):
                raise
            return None
        calls = values if all(_is_call(value, names) for value in values) else []
        if end < len(text):
            if calls:
                raise self._followed(text, end)
            return None
        return calls

    def _followed(self, text: str, at: int) -> ToolCallError:
        expected = repr(self.closing) if self.closing else "its end"
        return ToolCallError(f"A tool call is followed by {text[at : at + 20]!r} instead of {expected}.", text=text)

    def _values(self, text: str, at: int) -> tuple[list[Any], int]:
        """Return the objects that begin at an index, and the index of what follows them and white space."""
        values: list[Any] = []
        while True:
            found, at = self.reads(text, after_space(text, at))
            values += found
            at = after_space(text, at)
            if self.separator is None or not text.startswith(self.separator, at):
                return values, at
            at += len(self.separator)


_QWEN = tagged(("<function=", ">"), ("<parameter=", ">"), ends="</parameter>", pad=("\n", "\n"))
_SEED = tagged(("<function=", ">"), ("<parameter=", ">"), ends="</parameter>")
_MINICPM = tagged(("", '">'), ('<param name="', '">'), ends="</param>", pad=("<![CDATA[", "]]>"), whole=False)
_TAGS = ("<tool_call>", "</tool_call>")
_SEED_TAGS = ("<seed:tool_call>", "</seed:tool_call>")
_LFM2 = ("<|tool_call_start|>", "<|tool_call_end|>")
_MISTRAL = Wording("[TOOL_CALLS]", listed=True)
_GRANITE = Wording("<|tool_call|>", listed=True)

# The more specific before the more general. Templates of the same models that teach other forms (calls in XML tags of
# their own, after a name) have none of these markers.
FORMATS = (
    Format("Hermes", ("<tool_call>", '"arguments":'), *_TAGS, wording=Wording("<tool_call>\n")),
    Format(
        "Llama 3",
        ('{"name": function name, "parameters":',),
        "<|python_tag|>",
        bare="{",
        separator=";",
        wording=Wording("", "parameters"),
    ),
    Format("Mistral", ("[TOOL_CALLS][",), "[TOOL_CALLS]", bare="[", wording=_MISTRAL),
    Format("Mistral", ("[TOOL_CALLS] [",), "[TOOL_CALLS]", bare="[", wording=_MISTRAL),
    Format(
        "Ministral 3",
        ("[TOOL_CALLS]", "[ARGS]"),
        "[TOOL_CALLS]",
        reads=bracketed,
        inside=("[CALL_ID]", "[ARGS]"),
        wording=Wording("[TOOL_CALLS]{name}[ARGS]", key=""),
    ),
    Format(
        "Phi-4-mini",
        ("<|tool|>", "<|/tool|>"),
        "<|tool_call|>",
        "<|/tool_call|>",
        bare="[",
        in_system=True,
        wording=_GRANITE,
    ),
    Format("Granite", ("<|tool_call|>",), "<|tool_call|>", bare="[", wording=_GRANITE),
    Format(
        "Gemma 4", ("<|tool_call>", '<|"|>'), "<|tool_call>", "<tool_call|>", reads=braced('<|"|>'), inside=('<|"|>',)
    ),
    Format(
        "FunctionGemma",
        ("<start_function_call>", "<escape>"),
        "<start_function_call>",
        "<end_function_call>",
        reads=braced("<escape>"),
        inside=("<escape>",),
    ),
    Format("Qwen3.5", ("<tool_call>", "<parameter="), *_TAGS, reads=_QWEN, untyped=True),
    Format("Seed-OSS", ("<seed:tool_call>", "<parameter="), *_SEED_TAGS, reads=_SEED, untyped=True),
    Format(
        "MiniCPM5",
        ('<function name="', '<param name="'),
        '<function name="',
        "</function>",
        reads=_MINICPM,
        inside=('<param name="', "</param>", "<![CDATA[", "]]>"),
        untyped=True,
    ),
    # Three templates of theirs, of which one alone writes calls.
    Format("LFM2", ("<|tool_call_start|>",), *_LFM2, reads=pythonic),
    Format("LFM2", ("<|tool_list_start|>",), *_LFM2, reads=pythonic),
    Format("LFM2", ("List of tools: [", "<|im_start|>"), *_LFM2, reads=pythonic),
)


def named(template_source: str) -> str | None:
    """Return what the format is called that a chat template teaches, None where it is none of the table."""
    found = _taught(template_source)
    return None if found is None else found.name


def _taught(template_source: str) -> Format | None:
    written = template_source.replace("\\", "")
    return next((each for each in FORMATS if all(marker in written for marker in each.markers)), None)


def format_of(template_source: str) -> Format:
    """Return the format that a chat template teaches. Raises ``SchemaError`` where it is none of the table."""
    if (found := _taught(template_source)) is not None:
        return found
    raise SchemaError(
        "This bundle's chat template writes tool calls in no form that is known here.",
        hint=f"Known are those of {', '.join(dict.fromkeys(each.name for each in FORMATS))}.",
    )


def _alone(text: str, at: int, names: Collection[str]) -> list[Any] | None:
    """Return the calls of an answer that is one piece of JSON, perhaps in a fence, None for any other answer."""
    fence = _FENCE.match(text, at)
    begin = fence.end() if fence else at
    if not text.startswith(("{", "["), begin):
        return None
    try:
        value, end = json_at(text, begin)
    except ToolCallError:
        return None
    if text[end:].strip() != ("```" if fence else ""):
        return None
    values = value if isinstance(value, list) else [value]
    return values if all(_is_call(each, names) and _is_whole(each, names) for each in values) else []


def _is_call(value: object, names: Collection[str]) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    return value["name"] in names or any(key in value for key in ARGUMENTS)


def _is_whole(call: dict[str, Any], names: Collection[str]) -> bool:
    return call["name"] in names and any(isinstance(call.get(key), dict) for key in ARGUMENTS)


def _begins_call(answer: str, names: Collection[str]) -> bool:
    head = _HEAD.match(answer)
    if head is None:
        return False
    if head["closed"]:
        return head["name"] in names or head["key"] is not None
    return any(name.startswith(head["name"]) for name in names)
