"""llama.cpp's pre-tokenizers that have a counterpart in tokenizer.json: what each splits a text by.

Source of the names and of what each does: ``llm_tokenizer_bpe`` and ``llama_vocab::impl::load`` in llama.cpp's
src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

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
NAMES: Mapping[tuple[str, ...], Mapping[bool, str]] = {
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

# Further names of the same expressions, with what each says of ignore_merges.
_ALIASES: Mapping[str, tuple[str, bool]] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), ("llama-bpe", True)),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez"), ("qwen2", False)),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), ("smollm", False)),
    **dict.fromkeys(("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), ("gpt-2", False)),
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum"), ("gpt-2", False)),
    **dict.fromkeys(("llama4", "kanana2"), ("gpt-4o", False)),
    "smaug-bpe": ("dbrx", False),
}

ADDS_BOS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken"})
"""Pre-tokenizers whose texts begin with BOS where a file does not say."""

COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen", "qwen35"})
"""Pre-tokenizers of models whose own tokenizers compose a text first (NFC), which no file says and llama.cpp leaves."""


def splits(name: str) -> tuple[tuple[str, ...], bool] | None:
    """Return the expressions that a pre-tokenizer splits by, as ``NAMES`` has them, and its ignore_merges; None for a
    name that is not known here."""
    known, ignored = _ALIASES.get(name, (name, None))
    for expressions, names in NAMES.items():
        for ignores, found in names.items():
            if found == known:
                return expressions, ignores if ignored is None else ignored
    return None
