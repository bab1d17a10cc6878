"""Conversations to calibrate with: JSON lines of messages, told by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from edgepack.bundle.manifest import Chat
from edgepack.errors import BundleError, SourceError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.history import CallForm, form_of, told
from edgepack.text.messages import checked
from edgepack.text.opening import special_tokens
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.checkpoint.strictjson import parse
from edgepack_packager.text.files import TEMPLATE, TOOL_USE
from edgepack_packager.text.side import Text

_MOST: Final = 1024
"""Conversations that are told; of more, as many are taken from all over the file."""

_WAY: Final = 'Write a conversation a line: {"messages": [{"role": "user", "content": "..."}]}, or the list alone.'


_MEND: Final = "Change the line, or leave it out."


@dataclass(frozen=True, slots=True)
class Conversation:
    """A line of a file: where it stands, its messages, and the tools that they were written with, if any."""

    place: str
    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] | None = None


def read(text: str, name: str) -> list[Conversation]:
    """Return the conversations of JSON lines; lines of spaces are passed over.

    Raises ``SourceError``, which names the line, for what is neither a list of messages nor an object with one under
    "messages" and perhaps tools under "tools".
    """
    lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.split("\n"), 1)]
    found = [_conversation(line, place) for place, line in lines if line.strip()]
    if not found:
        raise SourceError(f"{name} holds no conversation.", hint=_WAY)
    return found


def _conversation(line: str, place: str) -> Conversation:
    try:
        value = parse(line.encode(), place)
    except SourceError as error:
        raise SourceError(error.message, hint=_WAY) from None
    said = {"messages": value} if isinstance(value, list) else value
    if not isinstance(said, dict) or "messages" not in said:
        raise SourceError(f"{place} holds no messages.", hint=_WAY)
    tools = said.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise SourceError(f"{place}: tools is no list of objects.", hint=_WAY)
    try:
        return Conversation(place, checked(said["messages"]), tools or None)
    except UsageError as error:
        raise SourceError(f"{place}: {error.message}", hint=_WAY) from None


class Teller:
    """Tells conversations as a bundle will: by the source's template, its day, and what is known of its roles."""

    def __init__(self, text: Text, chat: Chat | None, tokenizer: Tokenizer) -> None:
        if text.chat_template is None or chat is None:
            raise SourceError(
                "The model has no chat template, by which JSON lines of messages would be told.",
                hint="Calibrate with a plain text.",
            )
        self._chat, self._tokenizer, self._form_of = chat, tokenizer, cache(form_of)
        configs = ("tokenizer_config.json", "special_tokens_map.json")
        bos, eos = special_tokens(text.files[name] for name in configs if name in text.files)
        day = None if chat.date is None else chat.date.day

        def template(source: str, parts: Sequence[str], file: str, more: ChatTemplate | None = None) -> ChatTemplate:
            return ChatTemplate(source, bos_token=bos, eos_token=eos, date=day, parts=parts, tool_use=more, file=file)

        tools = None
        if text.tool_use is not None and chat.tool_use is not None:
            tools = template(text.tool_use, chat.tool_use.parts, TOOL_USE)
        self._template = template(text.chat_template, chat.parts, TEMPLATE, tools)

    def ids(self, conversations: Sequence[Conversation]) -> list[int]:
        """Return the token ids of conversations, one after the other, of ``_MOST`` at most.

        Raises ``SourceError``, which names the line, for one that the template does not take whole.
        """
        count = min(len(conversations), _MOST)
        chosen = [conversations[index * len(conversations) // count] for index in range(count)]
        return [id for conversation in chosen for id in self._told(conversation)]

    def _told(self, conversation: Conversation) -> list[int]:
        template = self._template.for_tools if conversation.tools else self._template
        facts = self._chat.tool_use or self._chat if template is not self._template else self._chat
        try:
            calls = any(message.get("tool_calls") for message in conversation.messages)
            form = self._form_of(template) if calls else CallForm()
            messages = told(conversation.messages, form, facts.roles, self._chat.thinking)
            for index, message in enumerate(messages):
                role = message["role"]
                if role not in facts.roles or (index and role in facts.leading):
                    where = "prints of the first message alone" if role in facts.roles else "does not print"
                    raise UsageError(f"messages[{index}].role is {role!r}, which the chat template {where}.")
            text = template.render(messages, tools=conversation.tools, add_generation_prompt=False)
        except (UsageError, BundleError) as error:
            raise SourceError(f"{conversation.place}: {error.message}", hint=_MEND) from None
        return self._tokenizer.encode(text, bos=False, special=True)
