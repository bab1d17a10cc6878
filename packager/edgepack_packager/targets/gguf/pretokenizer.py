"""Which of llama.cpp's pre-tokenizers a ``tokenizer.json`` has: decided by its regular expressions and flags.

Source of the names and of what each does: ``llm_tokenizer_bpe`` and ``llama_vocab::impl::load`` in llama.cpp's
src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepack.errors import UnsupportedModelError

Json = Mapping[str, Any]

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_BY_THREE_DIGITS = _HEAD + r"\p{N}{1,3}" + _TAIL
_BY_DIGIT = _HEAD + r"\p{N}" + _TAIL
_LEAD, _UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_BY_CASE = (
    f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# (regular expressions in order, ignore_merges) -> the name that llama.cpp knows. "bytes" is ByteLevel's own expression,
# GPT-2's; "digits" splits off every digit. llama.cpp's form of "gpt-4o" tells the cases of ASCII letters alone apart,
# and ends a word at a combining mark.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_BY_THREE_DIGITS,), True): "llama-bpe",
    ((_BY_THREE_DIGITS,), False): "dbrx",
    ((_BY_DIGIT,), False): "qwen2",
    (("digits", "bytes"), False): "smollm",
    (("bytes",), False): "gpt-2",
    ((_BY_CASE,), False): "gpt-4o",
}

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES_TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def byte_level_name(tokenizer: Json) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE.

    Raises ``UnsupportedModelError``, with the part of tokenizer.json that is to blame, where llama.cpp has none.
    """
    # llama.cpp does not normalise; NFC leaves composed text as it is, which is what nearly all text is
    if tokenizer.get("normalizer") not in (None, {"type": "NFC"}):
        raise _unknown("normalizer", tokenizer["normalizer"])
    splits = tuple(step for part in _sequence(tokenizer.get("pre_tokenizer")) for step in _step(part))
    name = _NAMES.get((splits, bool(tokenizer["model"].get("ignore_merges"))))
    if name is None:
        raise _unknown("pre_tokenizer", tokenizer.get("pre_tokenizer"))
    return name


def adds_space_prefix(tokenizer: Json) -> bool:
    """Return whether a SentencePiece-style tokenizer puts a space before the text.

    Metaspace does so unless the text begins with a space, llama.cpp always: such texts differ by one token there.
    Raises ``UnsupportedModelError`` where it does more than that and writing spaces as U+2581.
    """
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    # Gemma splits at spaces after it has replaced them all
    if pre in (None, _AT_SPACES) and normalizer:
        steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
        if steps in ([_PREPEND, _SPACES_TO_BLOCKS], [_SPACES_TO_BLOCKS]):
            return len(steps) == 2
        raise _unknown("normalizer", normalizer)
    if pre and pre.get("type") == "Metaspace" and pre.get("replacement") == _SPACE and pre.get("split") is False:
        if normalizer is not None:
            raise _unknown("normalizer", normalizer)
        return str(pre.get("prepend_scheme")) in ("always", "first")
    raise _unknown("pre_tokenizer", pre)


def _sequence(pre: Json | None) -> list[Json]:
    if pre is None:
        return []
    return list(pre["pretokenizers"]) if pre.get("type") == "Sequence" else [pre]


def _step(part: Json) -> tuple[str, ...]:
    """What one pre-tokenizer splits by, or its JSON where nothing of llama.cpp matches it."""
    match part:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case {"type": "ByteLevel", "add_prefix_space": False, **others}:
            # tokenizers before 0.12 do not write the field, and mean true
            return ("bytes",) if others.get("use_regex", True) else ()
        case _:
            return (json.dumps(part, sort_keys=True),)


def _unknown(field: str, found: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tokenizer.json: llama.cpp has no counterpart of this {field}: {json.dumps(found, ensure_ascii=False)}.",
        hint="Build the other targets, which carry tokenizer.json as it is.",
    )
