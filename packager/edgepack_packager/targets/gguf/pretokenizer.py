"""Which of llama.cpp's pre-tokenizers a ``tokenizer.json`` has: decided by its regular expressions and flags.

Source of the names and of what each does: ``llm_tokenizer_bpe`` and ``llama_vocab::impl::load`` in llama.cpp's
src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgepack.errors import UnsupportedModelError
from edgepack_packager.checkpoint.gguf.pretokenizers import DEEPSEEK_LLM, NAMES

Json = Mapping[str, Any]

_NUMBER = re.compile("[0-9]{2}")
_OTHERS = "Build the other targets, which go by tokenizer.json itself."
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES_TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def byte_level_name(tokenizer: Json) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE.

    Raises ``UnsupportedModelError``, with the part of tokenizer.json that is to blame, where llama.cpp has none.
    """
    # llama.cpp does not normalise; NFC leaves composed text as it is, which is what nearly all text is
    if any(step != {"type": "NFC"} for step in _sequence(tokenizer.get("normalizer"), "normalizers")):
        raise _unknown("normalizer", tokenizer["normalizer"])
    steps = _sequence(tokenizer.get("pre_tokenizer"), "pretokenizers")
    splits = tuple(split for part in steps for split in _step(part))
    names = NAMES.get(splits)
    if names is None:
        raise _unknown("pre_tokenizer", tokenizer.get("pre_tokenizer"))
    if splits == DEEPSEEK_LLM and (number := next(filter(_NUMBER.search, tokenizer["model"]["vocab"]), None)):
        raise UnsupportedModelError(
            f"tokenizer.json: the pre_tokenizer splits off every digit, llama.cpp does not for this one, and the token "
            f"{number!r} is made of several.",
            hint=_OTHERS,
        )
    ignored = bool(tokenizer["model"].get("ignore_merges"))
    if ignored in names:
        return names[ignored]
    # The other way of a whole word that is a token is the same one where its merges make it
    if (word := _unmade(tokenizer["model"])) is not None:
        raise UnsupportedModelError(
            f"tokenizer.json: ignore_merges is {str(ignored).lower()}, llama.cpp has the contrary for this "
            f"pre_tokenizer, and the token {word!r} is not what merges make of its text.",
            hint=_OTHERS,
        )
    return names[not ignored]


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


def _unmade(model: Json) -> str | None:
    """Return the first token of a BPE model that merges do not make of its text, None where they make all."""
    from tokenizers import Tokenizer

    merging = Tokenizer.from_str(json.dumps({"model": {**model, "ignore_merges": False}}))
    words = list(model["vocab"])
    made = merging.encode_batch(words, add_special_tokens=False)
    return next((word for word, found in zip(words, made, strict=True) if found.ids != [model["vocab"][word]]), None)


def _sequence(step: Json | None, parts: str) -> list[Json]:
    if step is None:
        return []
    return list(step[parts]) if step.get("type") == "Sequence" else [step]


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
        hint=_OTHERS,
    )
