"""The tokenizer of a GGUF file's metadata as tokenizer.json, and what stands beside it in other files of a source.

Byte-level BPE ("gpt2") and SentencePiece-style BPE ("llama") have a counterpart. What a file does not say, such as
whether an added token swallows the space before it, is as llama.cpp has it, whose src/llama-vocab.cpp is the source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgepack_packager.checkpoint.gguf.pretokenizers import ADDS_BOS, COMPOSED, splits
from edgepack_packager.checkpoint.gguf.vocabulary import TokenType
from edgepack_packager.source.gguf.keys import MAX_ITEMS, Keys, damaged, unsupported

Json = dict[str, Any]

_MODEL, _PRE, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"
_TYPES, _MERGES, _SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.scores"
_TEMPLATE = "tokenizer.chat_template"

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SPACES_TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_USED = tuple(kind for kind in TokenType if kind != TokenType.UNUSED)
_LONGEST = 1024  # characters of a token of SentencePiece

# In a model named so, llama.cpp lets every added token but these swallow the white space that follows.
_PHI3, _PHI3_KEEPS = re.compile("phi-?3", re.IGNORECASE), frozenset({"<unk>", "<s>", "<|endoftext|>"})

# What llama.cpp takes for a token of SentencePiece's that a file does not number.
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}


class Vocabulary:
    """The tokens of a file: ``tokens`` by id, with the ``types`` of llama.h, and the ids that have a role."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._path = keys.file.path
        self.kind = keys.text(_MODEL)
        if self.kind not in ("gpt2", "llama"):
            raise unsupported(self._path, f"has a tokenizer of the kind {self.kind!r}, which edgepack does not rebuild")
        self.tokens = keys.texts(_TOKENS)
        self.types = keys.array(_TYPES)
        if len(self.types) != len(self.tokens) or not {*self.types} <= {*TokenType}:
            raise damaged(self._path, f"must have one of llama.cpp's types for each token in {_TYPES}")
        self._check_twice()
        self.roles = {role: self._id(role) for role in ("bos", "eos", "eot", "eom", "unknown", "padding")}
        pre = keys.text(_PRE)
        self.add_bos = keys.flag("tokenizer.ggml.add_bos_token", self.kind == "llama" or pre in ADDS_BOS)
        if self.add_bos and self.roles["bos"] is None:
            raise damaged(self._path, "begins a text with BOS, and names no such token")

    def named(self, role: str) -> str | None:
        """Return the text of the token that has a role, None where none has it."""
        token = self.roles[role]
        return None if token is None else self.tokens[token]

    def of(self, *types: TokenType) -> dict[str, int]:
        """Return the ids of all tokens of these types by their texts."""
        return {self.tokens[id]: id for id, kind in enumerate(self.types) if kind in types}

    def _id(self, role: str) -> int | None:
        default = _SENTENCEPIECE_IDS.get(role) if self.kind == "llama" else None
        found = self._keys.id(role)
        token = default if found is None else found
        if found is None and default is not None and default >= len(self.tokens):
            return None
        if token is not None and token >= len(self.tokens):
            raise damaged(self._path, f"names the token {token} as {role}, and has {len(self.tokens)} tokens")
        return token

    def _check_twice(self) -> None:
        used = [text for text, kind in zip(self.tokens, self.types, strict=True) if kind != TokenType.UNUSED]
        if len({*used}) < len(used):
            twice, _ = Counter(used).most_common(1)[0]
            raise unsupported(self._path, f"has the token {twice[:60]!r} twice")


def tokenizer_json(keys: Keys, words: Vocabulary) -> Json:
    """Return the tokenizer.json of a file.

    Raises ``UnsupportedModelError`` for a pre-tokenizer or a vocabulary that has no counterpart there, ``SourceError``
    for lists that contradict each other.
    """
    parts = _byte_level(keys, words) if words.kind == "gpt2" else _sentencepiece(keys, words)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(keys, words),
        "post_processor": _begins_with(words) if words.add_bos else None,
        **parts,
    }


def tokenizer_config(keys: Keys, words: Vocabulary) -> Json:
    """Return the tokenizer_config.json: the tokens with a role, and the chat templates."""
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": words.add_bos,
        "clean_up_tokenization_spaces": False,
        **{field: words.named(role) for field, role in named.items()},
    }
    prefix = f"{_TEMPLATE}."
    others = {key.removeprefix(prefix): keys.text(key) for key in keys.file.keys if key.startswith(prefix)}
    default = keys.text(_TEMPLATE)
    if others:
        templates = {"default": default} | others
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items() if text]
    elif default:
        config["chat_template"] = default
    return config


def generation_config(keys: Keys, words: Vocabulary) -> Json:
    """Return the generation_config.json: the tokens that end an answer, and how the file says to sample."""
    ends = dict.fromkeys(words.roles[role] for role in ("eos", "eot", "eom"))
    config: Json = {"eos_token_id": [token for token in ends if token is not None]}
    sampled = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"}
    said = {name: f"general.sampling.{key}" for name, key in sampled.items()}
    config |= {name: keys.number(key) for name, key in said.items() if keys.has(key)}
    if keys.has("general.sampling.top_k"):
        config["top_k"] = keys.count("general.sampling.top_k")
    if config.get("temperature"):
        config["do_sample"] = True
    return config


def _byte_level(keys: Keys, words: Vocabulary) -> Json:
    name = keys.text(_PRE)
    found = splits(name) if name else None
    if found is None or name is None:
        said = f"the pre-tokenizer {name!r}, which has no counterpart here" if name else "no name for its pre-tokenizer"
        raise unsupported(keys.file.path, f"has {said}: texts would become other tokens")
    expressions, ignores = found
    return {
        "normalizer": {"type": "NFC"} if name in COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pretokenizers(expressions)},
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": _bpe(words.of(*_USED), _merges(keys), ignore_merges=ignores),
    }


def _pretokenizers(expressions: Sequence[str]) -> list[Json]:
    steps: list[Json] = []
    for each in expressions:
        match each:
            case "bytes":
                steps.append({**_BYTE_LEVEL, "use_regex": True})
            case "digits":
                steps.append({"type": "Digits", "individual_digits": True})
            case _:
                split = {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
                steps.append(split)
    if expressions[-1] != "bytes":
        steps.append({**_BYTE_LEVEL, "use_regex": False})
    return steps


def _merges(keys: Keys) -> list[list[str]]:
    merges = []
    for merge in keys.texts(_MERGES):
        left, space, right = merge.partition(" ")
        if not (left and right and space) or " " in right:
            raise damaged(keys.file.path, f"has the merge {merge[:60]!r}, which is not a pair of tokens")
        merges.append([left, right])
    return merges


def _sentencepiece(keys: Keys, words: Vocabulary) -> Json:
    prefix = keys.flag("tokenizer.ggml.add_space_prefix", True)
    steps: list[Json] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, _SPACES_TO_BLOCKS]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(words.of(*_USED), _by_score(keys, words), unknown=words.named("unknown"), byte_fallback=True),
    }


def _by_score(keys: Keys, words: Vocabulary) -> list[list[str]]:
    """Return the merges that join what SentencePiece does: those of the highest score first.

    Of two neighbours whose union is a token, llama.cpp joins those with the highest score of that. A pair of tokens has
    the rank of the token that it makes; of equal ones, the longer left part goes first, as in transformers'
    ``generate_merges``.
    """
    scores = np.array(keys.array(_SCORES), np.float64)
    if len(scores) != len(words.tokens) or not np.isfinite(scores).all():
        raise damaged(keys.file.path, f"must have a finite number for each token in {_SCORES}")
    normal = words.of(TokenType.NORMAL)
    longest = max(map(len, normal), default=0)
    if longest > _LONGEST:
        raise unsupported(keys.file.path, f"has a token of {longest} characters")
    pairs = (
        (-scores[id], -cut, text)
        for text, id in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    )
    found = sorted(islice(pairs, MAX_ITEMS))
    if len(found) == MAX_ITEMS:
        raise unsupported(keys.file.path, f"has a vocabulary whose tokens are made in {MAX_ITEMS} ways or more")
    return [[text[:-minus], text[-minus:]] for _, minus, text in found]


def _bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    *,
    ignore_merges: bool = False,
    unknown: str | None = None,
    byte_fallback: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocabulary),
        "merges": merges,
    }


def _added(keys: Keys, words: Vocabulary) -> list[Json]:
    swallows = bool(_PHI3.search(keys.text("general.name") or ""))
    special = words.of(TokenType.CONTROL, TokenType.UNKNOWN)
    found = special | words.of(TokenType.USER_DEFINED)
    return [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": swallows and text not in _PHI3_KEEPS,
            "normalized": False,
            "special": text in special,
        }
        for text, id in sorted(found.items(), key=lambda item: item[1])
    ]


def _begins_with(words: Vocabulary) -> Json:
    text, id = words.named("bos"), words.roles["bos"]
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    one, other = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, one],
        "pair": [begin, one, begin, other],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    }
