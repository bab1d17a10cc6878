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

_BY_CASE_AND_DIGIT = (
    f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
_LINES, _EAST_ASIAN = "[\r\n]", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_CODER = (_LINES, r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, "digits")
# Letters that have a case: DeepSeek LLM writes their ranges out.
_CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a"
    "\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_PUNCTUATION = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK_LLM = (_LINES, rf"\s?[{_CASED}]+", rf"\s?{_PUNCTUATION}", r"\s+$", _EAST_ASIAN, "digits")

# Regular expressions in order -> the names that llama.cpp knows, by its ignore_merges. "bytes" is ByteLevel's own
# expression, GPT-2's; "digits" splits off every digit. What llama.cpp's form of an expression does otherwise stands in
# the runtime's ``differences``.
_NAMES: Mapping[tuple[str, ...], Mapping[bool, str]] = {
    (_BY_THREE_DIGITS,): {True: "llama-bpe", False: "dbrx"},
    (_BY_DIGIT,): {False: "qwen2"},
    (_WITH_MARKS,): {False: "qwen35"},
    ("digits", "bytes"): {False: "smollm"},
    ("bytes",): {False: "gpt-2"},
    (_BY_CASE,): {False: "gpt-4o"},
    (_BY_CASE_AND_DIGIT,): {True: "tekken"},
    DEEPSEEK_LLM: {False: "deepseek-llm"},
    _DEEPSEEK_CODER: {False: "deepseek-coder"},
    _DEEPSEEK_V3: {False: "deepseek-v3"},
}

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
    names = _NAMES.get(splits)
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
