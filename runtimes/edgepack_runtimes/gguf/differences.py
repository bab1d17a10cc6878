"""What llama.cpp's tokenizer is known to do otherwise than tokenizer.json, as rules over a vocabulary's structure.

A rule says for one text whether it can explain other ids than tokenizer.json gives; whether they are others is found by
comparing them. Source: ``llama_vocab::impl`` and ``tokenizer_st_partition`` in llama.cpp's src/llama-vocab.cpp, and
what the pinned library does with small vocabularies made for the question.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# Tokens that llama.cpp makes control tokens by their name alone, so that it finds none of them in a plain text.
_CONTROL_BY_NAME = frozenset(
    {
        "</s>",
        "<eos>",
        "[EOS]",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[e~[",
        "<turn|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|call|>",
        "<|calls|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|flush|>",
        "<|ifm|im_end|>",
        "<|im_end|>",
        "<|return|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


# What llama.cpp splits a text by where it says the same otherwise: of upper and lower case it knows ASCII's, and a word
# ends at a combining mark.
_LEAD, _UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?", r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXPRESSIONS: Mapping[str, str] = {
    "gpt-4o": f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}"
    rf"|\p{{N}}{{1,3}}|{_REST}",
    "tekken": rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}",
}
# Where it looks for ranges of characters, white space is one of ASCII's.
_NARROW_SPACES = frozenset({"deepseek-llm", "deepseek-coder"})


class _Step(msgspec.Struct):
    """A normalizer or pre-tokenizer of tokenizer.json, with the steps of a sequence."""

    type: str
    normalizers: list[_Step] = []


class _Added(msgspec.Struct):
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    normalizer: _Step | None = None
    pre_tokenizer: _Step | None = None
    added_tokens: list[_Added] = []


class Differences:
    """The rules over one parsed tokenizer.json and what ``tokenizer.ggml.model`` and ``.pre`` say in a GGUF file."""

    def __init__(self, tokenizer: Mapping[str, object], model: str, pre: str) -> None:
        parts = msgspec.convert(tokenizer, _Tokenizer)
        self._pre = pre
        self._splits = _splitters(tokenizer, _EXPRESSIONS[pre]) if pre in _EXPRESSIONS else None
        self._composes = "NFC" in _types(parts.normalizer)
        self._metaspace = "Metaspace" in _types(parts.pre_tokenizer)
        self._sentencepiece = model == "llama"
        self._added = sorted(parts.added_tokens, key=lambda token: len(token.content.encode()), reverse=True)
        self._names = re.compile("|".join(re.escape(token.content) for token in self._added) or r"(?!)")

    def explain(self, text: str, *, special: bool) -> str | None:
        """Return why llama.cpp cannot tokenise this text as tokenizer.json does, None where it can.

        With ``special``, the names of special tokens in the text are those tokens.
        """
        if self._composes and unicodedata.normalize("NFC", text) != text:
            return "llama.cpp does not normalise a text, and tokenizer.json composes it first (NFC)"
        found = [token for token in self._added if token.content in text]
        for token in found:
            if not special and token.content in _CONTROL_BY_NAME and not token.special:
                return f"llama.cpp takes {token.content} for a control token by its name, tokenizer.json does not"
        if self._sentencepiece and any(_SPACE in token.content and not token.special for token in found):
            return f"llama.cpp reads {_SPACE} in a text as a space, tokenizer.json as an added token that is written so"
        looked_for = [token.content for token in found if special or not token.special]
        if self._leftmost(text, looked_for) != _longest(text, looked_for):
            return "llama.cpp takes the longest of overlapping added tokens, tokenizer.json the one that begins first"
        if self._pre in _NARROW_SPACES and any(letter > "\x7f" and letter.isspace() for letter in text):
            return f"llama.cpp's {self._pre} finds white space beyond ASCII in no range of characters"
        if self._splits is not None and any(self._splits(part) for part in self._names.split(text)):
            return f"llama.cpp's {self._pre} knows ASCII's cases alone, and ends a word at a combining mark"
        if self._metaspace and text.startswith(" "):
            return "llama.cpp puts a space before a text that begins with one, the Metaspace of tokenizer.json does not"
        if self._metaspace and found:
            return "llama.cpp puts a space after an added token, the Metaspace of tokenizer.json does not"
        return None

    def _leftmost(self, text: str, names: list[str]) -> list[tuple[int, int]]:
        """Where tokenizer.json finds added tokens: each from the left, of those that begin there the longest."""
        return [place.span() for place in self._names.finditer(text) if place[0] in names]


def _longest(text: str, names: list[str]) -> list[tuple[int, int]]:
    """Where llama.cpp finds added tokens: all of the longest in a whole text, then of the next in what is left."""
    taken: list[tuple[int, int]] = []
    for name in names:
        start = 0
        while (start := text.find(name, start)) >= 0:
            end = start + len(name)
            over = [other for other in taken if other[0] < end and start < other[1]]
            if over:
                start = max(other[1] for other in over) if start >= min(over)[0] else start + 1
            else:
                taken.append((start, end))
                start = end
    return sorted(taken)


def _splitters(tokenizer: Mapping[str, object], expression: str) -> Callable[[str], bool]:
    """Return what says whether the expression splits a text otherwise than tokenizer.json's pre-tokenizer."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.pre_tokenizers import Split

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    whole = Tokenizer.from_str(json.dumps({"pre_tokenizer": tokenizer["pre_tokenizer"], "model": empty}))
    ours, theirs = whole.pre_tokenizer, Split(Regex(expression), "isolated")
    return lambda text: _ends(ours, text) != _ends(theirs, text)


def _ends(splitter: PreTokenizer, text: str) -> list[int]:
    return [end for _, (_, end) in splitter.pre_tokenize_str(text)]


def _types(step: _Step | None) -> Iterator[str]:
    if step is not None:
        yield step.type
        for inner in step.normalizers:
            yield from _types(inner)
