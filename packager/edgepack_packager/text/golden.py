"""Golden vectors: texts and conversations whose token ids a bundle records, so that a device can replay them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from edgepack.bundle.manifest import Chat, Date, Golden, Probe, ToolUse
from edgepack.errors import ProofError, SourceError
from edgepack.text.marks import Marked
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text import rendered, rendered_with_tools
from edgepack_packager.text.battery import DAY, TEXTS, Conversation
from edgepack_packager.text.files import TEMPLATE, TOOL_USE
from edgepack_packager.text.render import Answer, Rendered, check_user
from edgepack_packager.text.side import Text
from edgepack_packager.text.thinking import UNSAID, prove


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a device must be able to repeat: the tokenizer's probes, and the chat template's facts and goldens."""

    probes: list[Probe]
    chat: Chat | None


def vectors(text: Text, tokenizer: Tokenizer, date: str | None = None, thinks: bool = False) -> Vectors:
    """Return the vectors of a source's text side; ``date`` and ``thinks`` are the recipe's.

    Raises ``SourceError`` for a chat template that fails, that does not print what a user says, or that writes BOS
    twice; ``ProofError`` for a thought that cannot be told from its answer.
    """
    policy = Date(policy="passed", day=DAY) if date == "passed" else Date(policy="pinned", day=date or DAY)
    found, with_tools = rendered(text, policy.day), rendered_with_tools(text, policy.day)
    chatting = None if found is None else chat(found, with_tools, tokenizer, text.bos, policy, thinks)
    return Vectors(probes(text, tokenizer), chatting)


def probes(text: Text, tokenizer: Tokenizer) -> list[Probe]:
    """Return the texts of the battery, and names of added tokens inside a text, with their ids without BOS.

    The latter stand there twice: as text of a user, and with special tokens parsed, as a template's text is.
    """
    names = [*text.names(special=True), *text.names(special=False)]
    inside = [f"a{name}b {name} c\n{name}\n{name}{name} d" for name in names]
    asked = [(words, False) for words in (*TEXTS, *inside)] + [(words, True) for words in inside]
    return [
        Probe(text=words, special=special, ids=tokenizer.encode(words, bos=False, special=special))
        for words, special in asked
    ]


def chat(
    found: Rendered,
    with_tools: Rendered | None,
    tokenizer: Tokenizer,
    bos: int | None,
    date: Date,
    thinks: bool = False,
) -> Chat:
    """Return the chat facts of rendered templates: what they print, how the model thinks, the date and their goldens.

    ``thinks``: it does, also where the template does not speak of it.
    """
    thinking = found.thinking or (UNSAID if thinks else None)
    if thinking is not None:
        prove(thinking, tokenizer, TEMPLATE)
    dated = "strftime_now" in found.reads or (with_tools is not None and "strftime_now" in with_tools.reads)
    return Chat(
        **_facts(found, TEMPLATE, tokenizer, bos),
        date=date if dated else None,
        tool_use=None if with_tools is None else ToolUse(**_facts(with_tools, TOOL_USE, tokenizer, bos)),
        thinking=thinking,
    )


def _facts(found: Rendered, file: str, tokenizer: Tokenizer, bos: int | None) -> dict[str, Any]:
    check_user(found, file)
    arrival = found.arrival
    if "user" not in arrival.roles:
        raise SourceError(
            f"{file} does not print what a user says, neither as a string nor as a list of parts: it is missing in the "
            f"conversation {arrival.lost['user']!r}.",
            hint="Mend the template, or build without it, for plain texts: --no-chat",
        )
    goldens = [_golden(asked, found.answers[asked.name], file, tokenizer, bos) for asked in found.conversations]
    return {"roles": arrival.roles, "parts": arrival.parts, "leading": arrival.leading, "goldens": goldens}


def _golden(asked: Conversation, answer: Answer, file: str, tokenizer: Tokenizer, bos: int | None) -> Golden:
    text = answer.marked
    ids = tokenizer.encode(text, bos=False, special=True)
    _prove(asked, text, ids, file, tokenizer)
    if bos is not None and ids[:2] == [bos, bos]:
        raise SourceError(f"{file} writes BOS twice before the conversation {asked.name!r}.")
    return Golden(
        name=asked.name,
        messages=asked.messages,
        tools=asked.tools,
        variables=asked.variables,
        add_generation_prompt=asked.add_generation_prompt,
        text=text.plain,
        ids=ids,
        refusal=answer.refusal,
    )


def _prove(asked: Conversation, text: Marked, ids: list[int], file: str, tokenizer: Tokenizer) -> None:
    """Raise ``ProofError`` where a prompt has another control token than its template writes, ``SourceError`` where it
    has other ids than its text, although nobody names a special token."""
    controls, wanted = (
        [id for id in each if id in tokenizer.special_ids]
        for each in (ids, tokenizer.encode(_harmless(text), bos=False, special=True))
    )
    if controls != wanted:
        raise ProofError(
            f"{file}: what is said in the conversation {asked.name!r} makes the control tokens {controls} in the "
            f"place of {wanted}.",
            hint="Report this, with the model's name.",
        )
    said = json.dumps(msgspec.to_builtins(asked), ensure_ascii=False)
    whole = tokenizer.encode(text.plain, bos=False, special=True)
    if ids != whole and not any(tokenizer.token(id) in said for id in tokenizer.special_ids):
        raise SourceError(
            f"{file} makes names of special tokens of what is said, or in a way that cannot be followed, in the "
            f"conversation {asked.name!r}.",
            hint="Write each of them out in the template, or build without it, for plain texts: --no-chat",
        )


def _harmless(text: Marked) -> str:
    """Return a text in which no name of a special token has a character that the template did not write."""
    chars = list(text.plain)
    for place in text.said(0, len(text)):
        if not chars[place].isspace():  # which some tokens take beside them
            chars[place] = "x" if chars[place].isalnum() or chars[place] == "_" else "."
    return "".join(chars)
