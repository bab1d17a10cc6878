"""Which token begins a text, and whether a plain text gets it. A prompt of a chat template never does: it has its own.

As in transformers 5, tokenizer.json alone says whether BOS is added: ``add_bos_token`` of tokenizer_config.json is what
older tools went by, is ignored where a tokenizer.json lies beside it, and is often wrong there (Phi-3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.text.files import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, parsed, token_name


def find(files: Mapping[str, bytes], config: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """Return the BOS token: as the tokenizer's configuration names it, else as config.json numbers it.

    Raises ``SourceError`` for a token that the tokenizer does not have.
    """
    for place in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        said = parsed(files, place)
        if "bos_token" in said:
            name = token_name(said, "bos_token", place)
            if name is not None and name not in ids:
                raise SourceError(f"{place}: bos_token, {name!r}, is not in {TOKENIZER}.")
            return None if name is None else ids[name]
    id = config.get("bos_token_id")
    if id is not None and id not in ids.values():
        raise SourceError(f"{CONFIG}: bos_token_id, {id!r}, is not in {TOKENIZER}.")
    return id


def is_added(tokenizer: Mapping[str, Any], bos: int | None) -> bool:
    """Return whether the post-processor of a parsed tokenizer.json starts a text with BOS.

    Raises ``UnsupportedModelError`` where it adds anything else.
    """
    before = _added_before(tokenizer)
    if before and bos is None:
        raise SourceError(f"{TOKENIZER_CONFIG} has no bos_token, but the tokenizer starts a text with one.")
    if before not in ([], [bos]):
        raise UnsupportedModelError(
            f"{TOKENIZER}: the post-processor starts a text with the ids {before}, not with BOS."
        )
    return bool(before)


def _added_before(tokenizer: Mapping[str, Any]) -> list[int]:
    """The ids that the post-processor puts before a text. Raises ``UnsupportedModelError`` where it adds others."""
    processor = tokenizer.get("post_processor") or {}
    before: list[int] = []
    for step in processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]:
        if step.get("type") in (None, "ByteLevel"):
            continue
        if step["type"] != "TemplateProcessing":
            raise UnsupportedModelError(f"{TOKENIZER}: the post-processor {step['type']} is not built.")
        template = step["single"]
        place = next(index for index, piece in enumerate(template) if "Sequence" in piece)
        if len(template) > place + 1:
            raise UnsupportedModelError(f"{TOKENIZER}: the post-processor adds a token after a text.")
        for piece in template[:place]:
            before += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before
