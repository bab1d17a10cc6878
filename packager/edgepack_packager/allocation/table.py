"""``recipe.toml``: which form each matrix of a variant has, as people read it, edit it and give it back.

    calibrate = "built-in"

    ["gguf-4.5bits".forms]
    "embedding" = "q6_K"
    "layers.*.mlp.*" = "q4_K"
    "layers.*.mlp.down" = "q5_K"

A star stands for one part of a name, alone for every matrix, and of several lines that name a matrix the last counts.
What none names follows the rule of "q4". A name among those that a format stores as one tensor speaks for all of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from edgepack.errors import SourceError, UsageError, brief
from edgepack_packager.checkpoint.strictjson import open_plain
from edgepack_packager.targets import Forms, Slot

FILE: Final = "recipe.toml"

_MOST_BYTES: Final = 1 << 20
_MOST_VARIANTS: Final = 64
_MOST_PATTERNS: Final = 256
"""Lines of a variant that have stars; more than that is no longer written by hand."""

_MOST_BRACKETS: Final = 2048
_MOST_LINE: Final = 1024
"""Characters: the parser calls itself for brackets within brackets, and copies a dotted key for each of its parts."""

_ID = re.compile(r"([a-z0-9]+)-([A-Za-z0-9_.+-]{1,64})")


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant of a recipe: its target, what it is called behind that, and its lines: forms by names and patterns."""

    target: str
    called: str
    lines: Mapping[str, str]

    @property
    def id(self) -> str:
        """The name of its table."""
        return f"{self.target}-{self.called}"


@dataclass(frozen=True, slots=True)
class Table:
    """A recipe that was read: its file, its variants, and the text that they were calibrated with, None for none."""

    path: Path
    text: str
    entries: tuple[Entry, ...]
    calibrate: str | None = None

    def forms(self, entry: Entry, slots: Sequence[Slot]) -> Forms:
        """Return the form of every matrix that a variant's lines name.

        Raises ``UsageError``, with the line, for a name that the model does not have, a form that its target does not
        have or that does not suit the matrix, and two forms for matrices that are one tensor in the file.
        """
        every = [name for slot in slots for name in slot.tensors]
        of = {name: slot for slot in slots for name in slot.tensors}
        known = sorted({form for slot in slots for form in slot.forms})
        named: dict[str, str] = {}
        for pattern, form in entry.lines.items():
            matched = (
                [name for name in every if _matches(pattern, name)] if "*" in pattern else [pattern] * (pattern in of)
            )
            if not matched:
                raise self._fault(entry, pattern, f"the model has no matrix {pattern!r}", _close(pattern, every))
            for name in matched:
                if form not in of[name].forms:
                    suits = form not in known
                    why = f"{entry.target} has no form {form!r}" if suits else f"{form} does not suit {name}"
                    raise self._fault(entry, pattern, why, f"Choose from: {', '.join(of[name].forms)}.")
            named |= dict.fromkeys(matched, form)
        for slot in slots:
            given = {name: named[name] for name in slot.tensors if name in named}
            if len(set(given.values())) > 1:
                told = ", ".join(f"{name} {form}" for name, form in given.items())
                raise self._fault(
                    entry,
                    next(reversed(given)),
                    f"matrices that {entry.target} stores as one tensor have several forms: {told}",
                    "Give them one.",
                )
            named |= dict.fromkeys(slot.tensors, next(iter(given.values()))) if given else {}
        return named

    def _fault(self, entry: Entry, key: str, what: str, hint: str) -> UsageError:
        return _fault(self.path, self.text, key, f"[{entry.id}]: {what}", hint)


def read(path: Path) -> Table:
    """Read a recipe. Raises ``SourceError`` for a file that is none, ``UsageError`` for what a recipe cannot say."""
    try:
        with open(open_plain(path, "Name the recipe.toml of a bundle, or one of your own."), "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.", hint="Name a recipe.toml.") from None
    if len(data) > _MOST_BYTES:
        raise SourceError(f"{path} is no recipe: it has more than {_MOST_BYTES >> 20} MiB.", hint="Name a recipe.toml.")
    try:
        text = data.decode("utf-8-sig")
        if (
            text.count("[") + text.count("{") > _MOST_BRACKETS
            or max(map(len, text.splitlines()), default=0) > _MOST_LINE
        ):
            raise ValueError("it has more brackets, or longer lines, than a recipe needs")
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} is no TOML: {brief(str(error))}.", hint="Write it as docs/quality.md shows."
        ) from None
    return _table(path, text, values)


def _table(path: Path, text: str, values: Mapping[str, Any]) -> Table:
    calibrate, entries = None, []
    for key, value in values.items():
        if key in ("calibrate", "calibrate_sha256"):
            if not isinstance(value, str):
                raise _fault(path, text, key, f"{key} is no text", "Put it in quotes.")
            calibrate = value if key == "calibrate" else calibrate
        else:
            entries.append(_entry(path, text, key, value))
    if not entries or len(entries) > _MOST_VARIANTS:
        raise UsageError(
            f"{path} has {len(entries)} variants; a recipe has 1 to {_MOST_VARIANTS}.",
            hint='Begin one with ["gguf-mine".forms].',
        )
    return Table(path, text, tuple(entries), calibrate)


def _entry(path: Path, text: str, key: str, value: object) -> Entry:
    found = _ID.fullmatch(key)
    if not found or not isinstance(value, dict):
        raise _fault(
            path, text, key, f"{brief(key)} is no variant", 'Name one as its target and a name: ["gguf-mine".forms].'
        )
    if unknown := sorted(value.keys() - {"goal", "forms"}):
        raise _fault(path, text, unknown[0], f"[{key}] has a field {brief(unknown[0])}", "It has forms, and a goal.")
    lines = value.get("forms")
    if not isinstance(lines, dict) or not lines:
        raise _fault(path, text, key, f"[{key}] has no forms", f'Give them below a line ["{key}".forms].')
    for name, form in lines.items():
        if not isinstance(form, str):
            raise _fault(
                path,
                text,
                name,
                f"[{key}]: {brief(name)} has no form",
                'Write names and forms in quotes: "head" = "q6_K".',
            )
    if sum("*" in name for name in lines) > _MOST_PATTERNS:
        raise UsageError(f"{path}: [{key}] has more than {_MOST_PATTERNS} lines with stars.", hint="Name the matrices.")
    return Entry(found[1], found[2], lines)


def _matches(pattern: str, name: str) -> bool:
    parts, of = pattern.split("."), name.split(".")
    return pattern == "*" or (len(parts) == len(of) and all(a in ("*", b) for a, b in zip(parts, of, strict=True)))


def _fault(path: Path, text: str, key: str, what: str, hint: str) -> UsageError:
    """Return an error with the last line that has the key: the parser keeps no lines of what is sound TOML."""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if key in line.partition("#")[0]]
    return UsageError(f"{path}{f', line {lines[-1]}' if lines else ''}: {what}.", hint=hint)


def _close(name: str, names: Sequence[str]) -> str:
    close = get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are {names[0]!r}, {names[-1]!r} and what lies between."


@dataclass(frozen=True, slots=True)
class Line:
    """What a recipe says of a slot: the name that it goes by, its form, and a remark."""

    name: str
    form: str
    remark: str


@dataclass(frozen=True, slots=True)
class Section:
    """What a recipe says of a variant: its table's name, its goal ("": none), remarks, and a line for each slot."""

    id: str
    goal: str
    remarks: Sequence[str]
    lines: Sequence[Line]


def write(sections: Sequence[Section], text: tuple[str, str] | None) -> str:
    """Return a recipe of variants, and of the text that they were calibrated with: its name and its sha256."""
    return "\n".join([*_head(text), *(line for section in sections for line in _section(section)), ""])


def _head(text: tuple[str, str] | None) -> Iterator[str]:
    yield "# Which form each matrix of these variants has. Edit it, and give it back:"
    yield f"#   edgepack build MODEL --recipe {FILE}"
    yield '# A star stands for one part of a name ("layers.*.mlp.down"); of lines that name a matrix, the last counts.'
    if text is not None:
        yield f"calibrate = {_quoted(text[0])}"
        yield f"calibrate_sha256 = {_quoted(text[1])}"


def _section(section: Section) -> Iterator[str]:
    yield ""
    yield f"[{_quoted(section.id)}]"
    yield from (f"# {remark}" for remark in section.remarks)
    if section.goal:
        yield f"goal = {_quoted(section.goal)}"
    yield f"[{_quoted(section.id)}.forms]"
    names, forms = [_quoted(line.name) for line in section.lines], [_quoted(line.form) for line in section.lines]
    width, wide = max(map(len, names)), max(map(len, forms))
    for name, form, line in zip(names, forms, section.lines, strict=True):
        yield f"{name:<{width}} = {form:<{wide}}  # {line.remark}"


def _quoted(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{escaped}"'
