"""Which roles a chat template prints, and in which form it reads what they say, proven with words of their own.

A template that leaves out what a message says does so without a word, and the model answers something else. So each
role speaks in several places of several conversations, and wherever the template takes one, every word must arrive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from itertools import combinations, product

import msgspec

from edgepack_packager.text.battery import ZURICH, call

_ROLES = ("user", "system", "assistant", "tool", "developer")
# Templates that cut a long content short would pass with a short one.
_LINES = 20


class Probe(msgspec.Struct, frozen=True):
    """A conversation whose contents must arrive. ``later`` is a role that also speaks after the first message."""

    name: str
    messages: list[dict[str, object]]
    later: str | None = None

    @property
    def roles(self) -> set[str]:
        """The roles that speak in it."""
        return {str(message["role"]) for message in self.messages}


class Arrival(msgspec.Struct, frozen=True):
    """What a template prints: the ``roles`` whose words arrive, which of them it reads in ``parts``, and which it
    prints only of the first message, ``leading``. ``lost`` tells in which conversation the words of another role are
    missing; a role in neither is one that it refuses."""

    roles: list[str]
    parts: list[str]
    leading: list[str]
    lost: dict[str, str]


# The texts that a template makes of a probe with the contents of these roles as parts: one for each way in which the
# template is used, with tools and without; none where it refuses.
Render = Callable[[Probe, Collection[str]], Iterable[str]]


def settle(render: Render, source: str) -> Arrival:
    """Return the form of contents in which a template prints the most roles: strings where they will do.

    What tools answer and what a developer says is asked about where the template's ``source`` speaks of them: many
    print the name of any role, also of one that their model does not know.
    """
    asked = [role for role in _ROLES if role not in ("tool", "developer") or role in source]
    best: Arrival | None = None
    for parts in _subsets(asked):
        found = _found(render, parts, asked)
        if best is None or _worth(found) > _worth(best):
            best = found
        if len(best.roles) == len(asked):
            break
    assert best is not None
    return best


def _subsets(roles: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the sets of roles to try: none and all, as nearly every template is written, then what is between."""
    yield ()
    yield tuple(roles)
    yield from (some for count in range(1, len(roles)) for some in combinations(roles, count))


def _worth(found: Arrival) -> tuple[bool, int]:
    return "user" in found.roles, len(found.roles)


def _found(render: Render, parts: Collection[str], asked: Collection[str]) -> Arrival:
    heard: set[str] = set()
    lost: dict[str, str] = {}
    leading: set[str] = set()
    for probe in PROBES:
        texts = list(render(probe, parts)) if probe.roles <= {*asked} else []
        for text, role in product(texts, probe.roles):
            arrives = all(_arrives(text, message) for message in probe.messages if message["role"] == role)
            if probe.later == role:
                leading |= set() if arrives else {role}
            elif arrives:
                heard.add(role)
            else:
                lost.setdefault(role, probe.name)
    roles = sorted(heard - lost.keys())
    return Arrival(roles, [role for role in roles if role in parts], [role for role in roles if role in leading], lost)


def _arrives(text: str, message: dict[str, object]) -> bool:
    """Return whether the marked words of a message stand in a text in their order, and not as the data of a part."""
    end = 0
    for place, word in enumerate(_words(str(message["content"]))):
        start = text.find(word, end)
        if start < 0 or (place == 0 and _PART.search(text[max(0, start - 40) : start])):
            return False
        end = start + len(word)
    return True


# What stands before the text of a part that is printed whole, {'type': 'text', 'text': '...'}, before any first words.
_PART = re.compile(r"""["']text["']\s*:\s*["']$""")
_WORD = re.compile(r"\b(?:Opens|Stays|Closes)[A-Z][a-z]+[A-Z]\b")


@cache
def _words(content: str) -> list[str]:
    return _WORD.findall(content)


def _message(role: str, turn: str) -> dict[str, object]:
    mark = f"{role.capitalize()}{turn}"
    filler = "\n".join(f"{line} and so it goes on for a while" for line in range(_LINES))
    return {"role": role, "content": f"Opens{mark} a text\n{filler}\nStays{mark} inside\n{filler}\nCloses{mark}"}


def _said(turns: str) -> list[dict[str, object]]:
    """Return messages for letters: s, u, a, t and v, a developer, speak; c and d are calls of one and of two tools."""
    names = {"v": "developer"} | {role[0]: role for role in _ROLES}
    messages: list[dict[str, object]] = []
    calls: list[str] = []
    for place, letter in enumerate(turns):
        turn = chr(ord("A") + place)
        if letter in "cd":
            calls = [f"call0000{place}", f"call1000{place}"][: 1 + (letter == "d")]
            messages.append({"role": "assistant", "content": "", "tool_calls": [call(id, ZURICH) for id in calls]})
        elif letter == "t":
            answer = {"role": "tool", "name": "get_weather", "tool_call_id": calls.pop(0)}
            messages.append({**_message("tool", turn), **answer})
        else:
            messages.append(_message(names[letter], turn))
    return messages


PROBES = (
    Probe("one message", _said("u")),
    Probe("several turns", _said("uauauauauau")),
    Probe("messages of one role in a row", _said("uuaau")),
    Probe("a system prompt", _said("su")),
    Probe("a system prompt and several turns", _said("suauau")),
    Probe("a tool's answer", _said("uct")),
    Probe("tools' answers in several turns", _said("uctauctau")),
    Probe("the answers of two tools", _said("udtt")),
    Probe("a developer's prompt and several turns", _said("vuauau")),
    Probe("two system prompts", _said("ssu"), later="system"),
    Probe("a system prompt after some turns", _said("uasu"), later="system"),
)
