"""Golden vectors: texts and conversations whose token ids a bundle records, so that a device can replay them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.bundle.manifest import Chat, Date, Golden, Probe
from edgepack.errors import SourceError
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text import rendered
from edgepack_packager.text.battery import CONVERSATIONS, DAY, TEXTS
from edgepack_packager.text.render import Rendered
from edgepack_packager.text.side import Text

# A vocabulary may hold hundreds of reserved names that differ by a number; the first and the last stand for them.
_ADDED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a device must be able to repeat: the tokenizer's probes, and the chat template's facts and goldens."""

    probes: list[Probe]
    chat: Chat | None


def vectors(text: Text, tokenizer: Tokenizer, n_vocab: int, date: str | None = None) -> Vectors:
    """Return the vectors of a source's text side, whose embedding has ``n_vocab`` rows; ``date`` is the recipe's.

    Raises ``SourceError`` for a chat template that fails or that writes BOS twice.
    """
    policy = Date(policy="passed", day=DAY) if date == "passed" else Date(policy="pinned", day=date or DAY)
    found = rendered(text, policy.day)
    chatting = None if found is None else chat(found, tokenizer, text.bos, policy)
    return Vectors(probes(text, tokenizer, n_vocab), chatting)


def probes(text: Text, tokenizer: Tokenizer, n_vocab: int) -> list[Probe]:
    """Return the texts of the battery, and names of added tokens inside a text, with their ids without BOS.

    The latter stand there twice: as text of a user, and with special tokens parsed, as a template's text is.
    """
    added = [token for token in text.tokenizer.get("added_tokens") or [] if token["id"] < n_vocab]
    kinds = [
        [token["content"] for token in added if bool(token.get("special")) is special] for special in (True, False)
    ]
    names = [name for kind in kinds for name in _ends(kind)]
    inside = [f"a{name}b {name} c\n{name}\n{name}{name} d" for name in names]
    asked = [(words, False) for words in (*TEXTS, *inside)] + [(words, True) for words in inside]
    return [
        Probe(text=words, special=special, ids=tokenizer.encode(words, bos=False, special=special))
        for words, special in asked
    ]


def chat(found: Rendered, tokenizer: Tokenizer, bos: int | None, date: Date) -> Chat:
    """Return the chat facts of a rendered template: the roles that it prints, its date and its goldens."""
    goldens, roles = [], set()
    for asked in CONVERSATIONS:
        answer = found.answers.get(asked.name)
        if answer is None:
            continue
        text = answer.text or ""
        ids = tokenizer.encode(text, bos=False, special=True)
        if bos is not None and ids[:2] == [bos, bos]:
            raise SourceError(f"chat_template.jinja writes BOS twice before the conversation {asked.name!r}.")
        roles |= {str(message["role"]) for message in asked.messages if _prints(text, str(message["content"]))}
        goldens.append(
            Golden(
                name=asked.name,
                messages=asked.messages,
                tools=asked.tools,
                variables=asked.variables,
                add_generation_prompt=asked.add_generation_prompt,
                text=text,
                ids=ids,
                refusal=answer.refusal,
            )
        )
    return Chat(roles=sorted(roles), date=date if "strftime_now" in found.reads else None, goldens=goldens)


def _prints(text: str, content: str) -> bool:
    return bool(content.strip()) and content.strip() in text


def _ends(names: Sequence[str]) -> Sequence[str]:
    half = _ADDED_TOKENS // 2
    return names if len(names) <= _ADDED_TOKENS else [*names[:half], *names[-half:]]
