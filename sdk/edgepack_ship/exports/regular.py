"""The regular form of a chat template: what stands before and after each message, found by rendering it.

A template is asked for conversations of marked contents; what stands between the marks is the form. Whether that is all
of it shows where conversations are rendered by both, which is whoever uses it to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from edgepack.errors import EdgepackError
from edgepack.text.chat import ChatTemplate
from edgepack_ship.exports.go_template import Message, literal

_SYSTEM, _FIRST, _ANSWER, _SECOND = "qzSystemzq", "qzFirstzq", "qzAnswerzq", "qzSecondzq"


@dataclass(frozen=True, slots=True)
class Sides:
    """What stands before and after a content."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class System:
    """What stands around a system prompt, from the prompt's beginning on; ``inside`` says that it stands in the first
    user's message, between what begins that and its content: ``after`` is then what separates the two."""

    before: str
    after: str
    inside: bool


@dataclass(frozen=True, slots=True)
class Form:
    """A template that treats every message of a role alike. ``begin`` stands before all messages where no system
    prompt does, ``asks`` is what has the model answer; ``system`` is None where the template refuses one."""

    begin: str
    user: Sides
    assistant: Sides
    asks: str
    system: System | None

    def without_bos(self, bos: str) -> Form:
        """Return the form without a BOS at its beginning, for an engine that puts one there itself."""
        system = self.system
        if system is not None:
            system = System(system.before.removeprefix(bos), system.after, system.inside)
        return Form(self.begin.removeprefix(bos), self.user, self.assistant, self.asks, system)

    def template(self) -> str:
        """Return it in Go's template language, as Ollama fills it in.

        The last message that is an answer is left open, so that the model goes on with it.
        """
        begin = literal(self.begin)
        inside = ""
        if self.system is not None and self.system.inside:
            after = literal(self.system.after)
            inside = f"{{{{ if and $.System (eq $i 1) }}}}{{{{ $.System }}}}{after}{{{{ end }}}}"
        elif self.system is not None:
            before, after = literal(self.system.before), literal(self.system.after)
            otherwise = f"{{{{ else }}}}{begin}" if begin else ""
            begin = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{otherwise}{{{{ end }}}}"
        user = f"{literal(self.user.before)}{inside}{{{{ .Content }}}}{literal(self.user.after)}"
        asks = literal(self.asks)
        asks = asks and f"{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{asks}{{{{ end }}}}"
        answer = f"{literal(self.assistant.before)}{{{{ .Content }}}}"
        after = f"{{{{ if ne (len (slice $.Messages $i)) 1 }}}}{literal(self.assistant.after)}{{{{ end }}}}"
        user = f'{{{{ if eq .Role "user" }}}}{user}{asks}'
        answer = f'{{{{ else if eq .Role "assistant" }}}}{answer}{after}{{{{ end }}}}'
        return f"{begin}{{{{ range $i, $_ := .Messages }}}}{user}{answer}{{{{ end }}}}"


def form_of(template: ChatTemplate) -> Form | None:
    """Return the form of a template, None where it has none: where two users' messages stand in different texts."""
    first, answer, second = _said("user", _FIRST), _said("assistant", _ANSWER), _said("user", _SECOND)
    asked = _around(template, [first], [_FIRST], ask=True)
    turns = _around(template, [first, answer, second], [_FIRST, _ANSWER, _SECOND], ask=True)
    if asked is None or turns is None or asked != [turns[0], turns[3]]:
        return None
    opening, to_answer, to_user, asking = turns
    # Where one part ends and the next begins shows in conversations that ask for nothing. Some templates end those in
    # a way of their own: then what both have in common goes to one part, and the text of the whole is the same.
    alone = _around(template, [first], [_FIRST])
    ended = _around(template, [first, answer], [_FIRST, _ANSWER])
    closing = alone[1] if alone else None
    if closing is None or not (to_answer.startswith(closing) and asking.startswith(closing)):
        closing = _common(to_answer, asking)
    end = ended[2] if ended else None
    if end is None or not to_user.startswith(end) or not opening.endswith(to_user[len(end) :]):
        end = to_user[: len(to_user) - len(_common(to_user[::-1], opening[::-1]))]
    before = to_user[len(end) :]
    begin = opening[: len(opening) - len(before)]
    return Form(
        begin,
        Sides(before, closing),
        Sides(to_answer[len(closing) :], end),
        asking[len(closing) :],
        _system(template, begin, before, first),
    )


def _system(template: ChatTemplate, begin: str, before: str, first: Message) -> System | None:
    found = _around(template, [_said("system", _SYSTEM), first], [_SYSTEM, _FIRST], ask=True)
    if found is None:
        return None
    to_system, to_user, _ = found
    if to_user.endswith(before) and before:
        return System(to_system, to_user[: len(to_user) - len(before)], inside=False)
    if to_system == begin + before:
        return System("", to_user, inside=True)
    return None


def _common(one: str, other: str) -> str:
    """Return what two texts begin with."""
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _around(
    template: ChatTemplate, messages: Sequence[Message], marks: Sequence[str], *, ask: bool = False
) -> list[str] | None:
    """Return the texts before, between and after the marks, None where the template refuses or repeats one."""
    try:
        text = template.render(messages, add_generation_prompt=ask).plain
    except EdgepackError:
        return None
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(before)
    if any(mark in text for mark in marks) or any(mark in piece for piece in pieces for mark in marks):
        return None
    return [*pieces, text]
