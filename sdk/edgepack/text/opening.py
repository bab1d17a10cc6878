"""From a bundle to its text side: the tokenizer and the chat template."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from edgepack.bundle.files import Bundle, listed
from edgepack.errors import BundleDamagedError
from edgepack.text.chat import TEMPLATE, TOOL_USE, ChatTemplate
from edgepack.text.tables import FILE, decode
from edgepack.text.tokenizer import Tokenizer


def text_side(bundle: Bundle) -> tuple[Tokenizer, ChatTemplate | None]:
    """Return a bundle's tokenizer and its chat template, None where it has none."""
    facts = bundle.manifest.tokenizer
    return Tokenizer(decode(bundle.read(FILE)), facts.bos, facts.add_bos), template_of(bundle)


def template_of(bundle: Bundle) -> ChatTemplate | None:
    """Return a bundle's chat template, None where it has none."""
    chat = bundle.manifest.chat
    if chat is None:
        return None
    names = ("tokenizer_config.json", "special_tokens_map.json")
    bos, eos = special_tokens([bundle.read(name) for name in names if name in listed(bundle.manifest)])
    day = chat.date.day if chat.date is not None and chat.date.policy == "pinned" else None

    def template(file: str, parts: Collection[str], tool_use: ChatTemplate | None = None) -> ChatTemplate:
        try:
            source = bundle.read(file).decode()
        except UnicodeDecodeError as error:
            raise BundleDamagedError(f"{file} of the bundle is not UTF-8: {error.reason}.") from None
        return ChatTemplate(source, bos_token=bos, eos_token=eos, date=day, parts=parts, tool_use=tool_use, file=file)

    with_tools = None if chat.tool_use is None else template(TOOL_USE, chat.tool_use.parts)
    return template(TEMPLATE, chat.parts, with_tools)


def special_tokens(configs: Iterable[bytes]) -> tuple[str, str]:
    """Return the texts of BOS and EOS that a template may print, "" where there is none.

    ``configs`` are tokenizer_config.json and special_tokens_map.json, as far as they exist; the first that names a
    token decides, as a string or as an object with a "content".
    """
    found = {"bos_token": "", "eos_token": ""}
    for config in reversed(list(configs)):
        try:
            said = json.loads(config)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise BundleDamagedError("The configuration of the bundle's tokenizer is not a JSON object.")
        found |= {name: said[name] for name in found if name in said}
    texts = [token.get("content") if isinstance(token, dict) else token for token in found.values()]
    bos, eos = (text if isinstance(text, str) else "" for text in texts)
    return bos, eos
