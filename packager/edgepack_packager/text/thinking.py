"""Whether a model thinks before it answers, and how its chat template says so: found by rendering it.

A template that knows of thoughts opens one in the prompt, writes an empty one for a model that is not to think, prints
one from a field of a message, leaves those out that stand in earlier answers, tells its model to think between marks,
or has a switch for it. Which marks those are is known here by the table in ``edgepack.text.thoughts``; everything else
is read off what the template prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from itertools import chain, product
from typing import NamedTuple

from edgepack.bundle.thinking import CLIENTS, CONTENT, Switch, Thinking
from edgepack.errors import ProofError
from edgepack.text.detokenize import Detokenizer
from edgepack.text.divider import Divider
from edgepack.text.thoughts import Marks, marks_of
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text.battery import ANSWER, TEXTS, TURNS, ZURICH, Conversation, call

UNSAID = Thinking(opening="<think>", closing="</think>", ending="\n</think>\n\n")
"""A model that thinks although its template does not say so, as those do that learn it from DeepSeek-R1."""

_FIELDS = (CLIENTS, "thinking", "reasoning")
_TELLING = re.compile(r"(?<![a-z])(reason(ing|er)|think(ing|er)|r1)(?![a-z0-9])", re.IGNORECASE)
_DENYING = re.compile(r"(?<![a-z])(no|non)[-_ ]?(think|reason)", re.IGNORECASE)
_NAMES = ("enable_thinking", "thinking", "enable_reasoning")  # of switches, which are on or off
_WORDS = Switch(on="/think", off="/no_think")
_THOUGHT = "It is quiet here."
_LAST = str(TURNS[-1]["content"])

Render = Callable[[Conversation], str | None]
"""What a template makes of a conversation, None where it refuses it."""


class _Prompts(NamedTuple):
    """What a prompt is where nobody says whether to think, and where somebody does."""

    plain: str
    on: str
    off: str


def find(render: Render, source: str, reads: Collection[str]) -> Thinking | None:
    """Return how the model of a template thinks, None where nothing in it speaks of thoughts.

    ``reads`` are the names that the template reads from outside.
    """
    plain = render(Conversation(name="plain", messages=TURNS))
    if plain is None:
        return None
    switch, prompts = _switch(render, source, reads, plain)
    known = marks_of(source)
    for marks in known:
        begun, skipped = _begun(prompts.on, marks), _skipped(prompts.off, marks)
        field, ending = _field(render, source, marks)
        earlier = _earlier(render, marks) if field is None else ""
        # The last of them are the template's own, and a switch is all that some say of thoughts.
        switched = marks == known[-1] and switch is not None and _tells(prompts)
        if begun or skipped or field or earlier == "left out" or _spoken_of(prompts.on, marks) or switched:
            if earlier in ("left out", "printed"):
                field = CONTENT
            return Thinking(
                opening=marks[0],
                closing=marks[1],
                ending=ending or _ending(begun, skipped, marks),
                begun=begun,
                skipped=skipped,
                default=_default(prompts, marks),
                switch=switch,
                field=field,
            )
    return None


def conversations(thinking: Thinking) -> list[Conversation]:
    """Return what the battery is to ask besides of a template whose model thinks."""
    found = []
    switch = thinking.switch
    if switch is not None and switch.variable != _NAMES[0]:  # which the battery asks anyway
        found = [
            _switched(switch, value, f"thinking {name}") for name, value in (("on", switch.on), ("off", switch.off))
        ]
    if thinking.field is not None:
        answer: dict[str, object] = {"role": "assistant", "content": ANSWER, thinking.field: _THOUGHT}
        if thinking.field == CONTENT:
            answer[CONTENT] = thinking.whole(_THOUGHT, ANSWER)
        found.append(Conversation(name="an earlier thought", messages=[TURNS[0], answer, TURNS[2]]))
    return found


def doubt(name: str) -> str | None:
    """Return what to say of a model whose template speaks of no thoughts and whose name does, else None."""
    if not _TELLING.search(name) or _DENYING.search(name):
        return None
    return (
        f"By its name, {name} thinks before it answers; its chat template does not say so, and what it thinks would be "
        "part of its answers. If it does, build it with --thinks."
    )


def prove(thinking: Thinking, tokenizer: Tokenizer, file: str) -> None:
    """Raise ``ProofError`` where a thought and its answer are not told apart again from their tokens.

    Each text of the battery is once thought and once said, by tokens that a model might choose, and as a tokenizer
    spells the whole.
    """

    def shown(ids: list[int]) -> str:
        words = Detokenizer(tokenizer, at_start=False)
        return "".join(map(words.push, ids))

    def spelt(text: str, special: bool = False) -> list[int]:
        return tokenizer.encode(text, bos=False, special=special)

    lead = thinking.begun or thinking.whole("", "")[: -len(thinking.ending)]
    for thought, answer in zip(TEXTS, reversed(TEXTS), strict=True):
        parts = spelt(lead, True), spelt(thought), spelt(thinking.ending, True), spelt(answer)
        ways = [([*chain.from_iterable(parts)], shown(parts[1]), shown(parts[3]))]
        if not any(tokenizer.token(id) in thought + answer for id in tokenizer.added_ids):
            words = shown(spelt(thought)), shown(spelt(answer))
            ways.append((spelt(thinking.whole(thought, answer), True), *words))
        for ids, inside, after in ways:
            divider = Divider(thinking, tokenizer, at_start=False, begun=False)
            pieces = [*map(divider.push, ids), divider.finish()]
            found = tuple("".join(piece[place] for piece in pieces) for place in (0, 1))
            if found != (inside.strip(), after.lstrip()):
                raise ProofError(
                    f"{file}: the thought {thought!r} between {thinking.opening!r} and {thinking.closing!r} is read as "
                    f"{found[0]!r}, and the answer {answer!r} after it as {found[1]!r}.",
                    hint="Report this, with the model's name.",
                )


def _switch(render: Render, source: str, reads: Collection[str], plain: str) -> tuple[Switch | None, _Prompts]:
    """Return how the template is told whether its model is to think, and its prompts."""
    for switch in _switches(source, reads):
        on, off = (render(_switched(switch, value, "switched")) for value in (switch.on, switch.off))
        if on is not None and off is not None and _unlike(on, off, switch):
            return switch, _Prompts(plain, on, off)
    return None, _Prompts(plain, plain, plain)


def _switches(source: str, reads: Collection[str]) -> Iterator[Switch]:
    yield from (Switch(variable=name, on=True, off=False) for name in _NAMES if name in reads)
    if str(_WORDS.off) in source:
        yield _WORDS


def _unlike(on: str, off: str, switch: Switch) -> bool:
    """Whether two prompts differ, by more than the words that tell the template what to do."""
    if switch.variable is not None:
        return on != off
    return on.replace(str(switch.on), "") != off.replace(str(switch.off), "")


def _switched(switch: Switch, value: bool | str, name: str) -> Conversation:
    if switch.variable is not None:
        return Conversation(name=name, messages=TURNS, variables={switch.variable: value})
    return Conversation(name=name, messages=[{"role": "system", "content": value}, *TURNS])


def _begun(prompt: str, marks: Marks) -> str:
    """Return what a prompt ends with that opens a thought, "" for one that opens none."""
    return prompt[prompt.rindex(marks[0]) :] if prompt.rstrip().endswith(marks[0]) else ""


def _skipped(prompt: str, marks: Marks) -> str:
    """Return what a prompt ends with in the place of a thought, "" where there is none."""
    found = re.search(rf"({re.escape(marks[0])}\s*)?{re.escape(marks[1])}\s*$", prompt)
    return found[0] if found else ""


def _spoken_of(prompt: str, marks: Marks) -> bool:
    """Whether a template writes both marks of its own accord: its model is told of them, or has thought nothing before
    an earlier answer."""
    return marks[1] in prompt.partition(marks[0])[2]


def _tells(prompts: _Prompts) -> bool:
    """Whether a switch says something to the model, not only its own value, and both answers begin alike: what opens
    one of them alone is a mark that is not known."""
    on, off = (re.sub("true|false", "", prompt, flags=re.IGNORECASE) for prompt in prompts[1:])
    return on != off and on.rpartition(_LAST)[2] == off.rpartition(_LAST)[2]


def _field(render: Render, source: str, marks: Marks) -> tuple[str | None, str]:
    """Return the field of a message whose text the template prints between the marks, and what it ends that with.

    Some print it beside a call alone, as what the model is still about.
    """
    for name, beside in product(_FIELDS, ({}, {"tool_calls": [call("call00001", ZURICH)]})):
        if name not in source:
            continue
        said: dict[str, object] = {"role": "assistant", "content": ANSWER, name: _THOUGHT, **beside}
        text = render(Conversation(name=name, messages=[TURNS[0], said], add_generation_prompt=False)) or ""
        before, thought, after = text.partition(_THOUGHT)
        ending, answer, _ = after.partition(ANSWER)
        if thought and answer and marks[1] in ending and before.rstrip().endswith(marks[0]):
            return name, "" if beside else ending  # which may have the call in it
    return None, ""


def _earlier(render: Render, marks: Marks) -> str:
    """Return what becomes of a thought in the content of an answer that is not the last: "left out", "printed", or else
    "", as where another is printed before it, which has nothing in it."""
    said: dict[str, object] = {"role": "assistant", "content": f"{marks[0]}\n{_THOUGHT}\n{marks[1]}\n\n{ANSWER}"}
    text = render(Conversation(name="earlier", messages=[TURNS[0], said, *TURNS])) or ""
    before, answer, _ = text.partition(ANSWER)
    if not answer:
        return ""
    if _THOUGHT not in before:
        return "left out"
    return "" if re.search(rf"{re.escape(marks[0])}\s*{re.escape(marks[1])}", before) else "printed"


def _ending(begun: str, skipped: str, marks: Marks) -> str:
    """Return what closes a thought, by the empty one that the template writes, else as most models do."""
    opened, _, after = skipped.partition(marks[1])
    inside = opened.removeprefix(marks[0])
    if skipped and (after or "\n" not in begun):
        return ("\n" if inside.count("\n") > 1 else "") + marks[1] + after
    return f"\n{marks[1]}\n\n"


def _default(prompts: _Prompts, marks: Marks) -> bool:
    """Return whether a prompt has the model think where nobody says so."""
    plain, on, off = ((_begun(each, marks), _skipped(each, marks)) for each in prompts)
    if on != off:
        return plain == on
    return not plain[1] and (prompts.plain != prompts.off or prompts.on == prompts.off)
