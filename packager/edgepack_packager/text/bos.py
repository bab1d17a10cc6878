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
                raise SourceError(f"{place}: bos_token, {name!r}, is not in {TOKENIZER}.", hint="Correct or remove it.")
            return None if name is None else ids[name]
    id = config.get("bos_token_id")
    if isinstance(id, list) and len(id) == 1:
        id = id[0]
    if id is not None and (type(id) is not int or id not in ids.values()):
        raise SourceError(f"{CONFIG}: bos_token_id, {id!r}, is not in {TOKENIZER}.", hint="Correct or remove it.")
    return id


def added(tokenizer: Mapping[str, Any], bos: int | None) -> tuple[bool, list[int]]:
    """Return whether the post-processor of a parsed tokenizer.json starts a text with BOS, and what it ends one with.

    Raises ``UnsupportedModelError`` where it starts a text with anything else.
    """
    before: list[int] = []
    after: list[int] = []
    for step in _steps(tokenizer.get("post_processor")):
        first, last = _around(step)
        before, after = [*first, *before], [*after, *last]
    if before and bos is None:
        raise SourceError(
            f"{TOKENIZER_CONFIG} has no bos_token, but the tokenizer starts a text with one.",
            hint="Name it there, or take it out of the post_processor of tokenizer.json.",
        )
    if before not in ([], [bos]):
        raise UnsupportedModelError(
            f"{TOKENIZER}: the post-processor starts a text with the ids {before}, not with BOS.",
            hint="If the model was trained without them, take them out of the post_processor of tokenizer.json.",
        )
    return bool(before), after


def _steps(processor: Any) -> list[Mapping[str, Any]]:
    if not processor:
        return []
    return (
        [step for each in processor["processors"] for step in _steps(each)]
        if _is(processor, "Sequence")
        else [processor]
    )


def _around(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that a step of the post-processor puts before and after a text."""
    if _is(step, "ByteLevel"):
        return [], []
    if _is(step, "RobertaProcessing") or _is(step, "BertProcessing"):
        return [step["cls"][1]], [step["sep"][1]]
    if not _is(step, "TemplateProcessing"):
        raise UnsupportedModelError(f"{TOKENIZER}: the post-processor {step.get('type')} is not built.")
    before: list[int] = []
    after: list[int] = []
    around = before
    for piece in step["single"]:
        if "Sequence" in piece:
            around = after
            continue
        name = piece["SpecialToken"]["id"]
        if name not in step["special_tokens"]:
            raise SourceError(
                f"{TOKENIZER}: the post_processor writes {name!r}, which its special_tokens lack.",
                hint="Fetch the file again.",
            )
        around += step["special_tokens"][name]["ids"]
    if around is before:
        raise SourceError(f"{TOKENIZER}: the post_processor leaves out the text itself.", hint="Fetch the file again.")
    return before, after


def _is(step: Mapping[str, Any], kind: str) -> bool:
    return step.get("type") == kind
