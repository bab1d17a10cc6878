"""A ``tokenizer.json`` (Hugging Face tokenizers) as the ``tokenizer.*`` keys of GGUF.

Two kinds of BPE have a counterpart in llama.cpp: byte-level BPE ("gpt2": tokens, merges, the name of a pre-tokenizer)
and SentencePiece-style BPE with byte fallback ("llama": tokens with scores). What else a tokenizer.json can hold is
refused by name. Which one it is, and which pre-tokenizer, is read from the file's structure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint.gguf.vocabulary import TokenType
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf.header import U32, Value
from edgepack_packager.targets.gguf.pretokenizer import adds_space_prefix, byte_level_name
from edgepack_packager.text.side import Text

Json = Mapping[str, Any]

# Tokens of code models. Where no key names one, llama.cpp looks for these words and makes what it finds a control
# token, which no plain text can contain.
_FILL_IN: Mapping[str, tuple[str, ...]] = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
        "<|plamo:fim_prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
        "<|plamo:fim_suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|plamo:fim_middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|repo_name|>", "<|fim_repo|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<|plamo:file_separator|>"),
}

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def vocabulary(model: Model) -> dict[str, Value]:
    """Return the tokenizer's keys; for a model without text, those of a vocabulary without tokens.

    Rows of the embedding beyond the tokenizer's entries become unused tokens "[PAD<id>]". Raises ``SourceError`` for a
    tokenizer with more entries than the embedding has rows, or with two entries for one id.
    """
    if model.text is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    tokenizer = model.text.tokenizer
    bpe = tokenizer["model"]
    if bpe.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"tokenizer.json: GGUF files are written for BPE only, not for {bpe['type']!r}.")
    tokens = _tokens(tokenizer, model.decoder.n_vocab)
    keys = _sentencepiece(tokenizer, tokens) if bpe.get("byte_fallback") else _byte_level(tokenizer, tokens)
    return keys | _special_tokens(model.text, {text: index for index, text in enumerate(tokens)})


def _byte_level(tokenizer: Json, tokens: list[str]) -> dict[str, Value]:
    pre = byte_level_name(tokenizer)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _types(tokenizer, tokens),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in _merges(tokenizer)],
    }


def _sentencepiece(tokenizer: Json, tokens: list[str]) -> dict[str, Value]:
    prefix = adds_space_prefix(tokenizer)
    ranks, types = _ranks(tokenizer), _types(tokenizer, tokens)
    for id in np.flatnonzero(types == TokenType.USER_DEFINED).tolist():
        if _SPACE in tokens[id] and tokens[id] in ranks:
            # merges make it of a text's spaces, in another order than that of looking for the longest: runs in Gemma
            types[id] = TokenType.NORMAL
        else:
            # llama.cpp looks for a user-defined token in the text before spaces become the block character
            tokens[id] = tokens[id].replace(_SPACE, " ")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": _scores(ranks, tokens),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _tokens(tokenizer: Json, n_vocab: int) -> list[str]:
    entries = dict(tokenizer["model"]["vocab"])
    entries |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or []}
    tokens = [f"[PAD{index}]" for index in range(n_vocab)]
    seen: dict[int, str] = {}
    for text, index in entries.items():
        if index >= n_vocab:
            raise SourceError(
                f"tokenizer.json: token {text!r} has the id {index}, and the embedding has {n_vocab} rows.",
                hint="The tokenizer belongs to another checkpoint, or the embedding was not resized.",
            )
        if index in seen:
            raise SourceError(f"tokenizer.json: the tokens {seen[index]!r} and {text!r} have the same id {index}.")
        seen[index] = tokens[index] = text
    return tokens


def _types(tokenizer: Json, tokens: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    model = tokenizer["model"]
    types = np.full(len(tokens), TokenType.UNUSED, np.int32)
    types[list(model["vocab"].values())] = TokenType.NORMAL
    if model.get("byte_fallback"):
        types[[model["vocab"][name] for byte in range(256) if (name := f"<0x{byte:02X}>") in model["vocab"]]] = (
            TokenType.BYTE
        )
    for added in tokenizer.get("added_tokens") or []:
        types[added["id"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    if (unknown := model.get("unk_token")) in model["vocab"]:
        types[model["vocab"][unknown]] = TokenType.UNKNOWN
    return types


def _merges(tokenizer: Json) -> list[tuple[str, str]]:
    """The merges in order of rank. tokenizers writes a merge as "a b" before 0.20, and as a pair since then."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in tokenizer["model"]["merges"]]
    for pair in pairs:
        if len(pair) != 2 or any(" " in part for part in pair):
            raise UnsupportedModelError(f"tokenizer.json: the merge {pair!r} is not a pair of tokens without spaces.")
    return [(left, right) for left, right in pairs]


def _ranks(tokenizer: Json) -> dict[str, int]:
    """The rank of the first merge that makes each token."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(tokenizer)):
        ranks.setdefault(left + right, rank)
    return ranks


def _scores(ranks: Mapping[str, int], tokens: list[str]) -> Float32:
    """Score each token by minus its rank, so that SPM merges in the order of BPE.

    llama.cpp joins the neighbours whose union has the highest score, and of equal ones the leftmost; BPE joins the pair
    of the lowest rank. Tokens that no merge makes are never joined by BPE and come last.
    """
    return -np.array([ranks.get(token, len(ranks) + len(tokens)) for token in tokens], np.float32)


def _special_tokens(text: Text, index: Mapping[str, int]) -> dict[str, Value]:
    config = json.loads(text.files.get("tokenizer_config.json", b"{}"))
    keys: dict[str, Value] = {}

    def name(role: str, token: int | None) -> None:
        if token is not None:
            keys[f"tokenizer.ggml.{role}_token_id"] = U32(token)

    eos, eot, eom = _ends(text, _named(config, "eos_token", index), index)
    name("bos", text.bos)
    name("eos", eos)
    name("eot", eot)
    name("eom", eom)
    name("unknown", _named(text.tokenizer["model"], "unk_token", index))
    name("padding", _named(config, "pad_token", index))
    for role, words in _FILL_IN.items():
        name(role, next((index[word] for word in words if word in index), None))
    keys["tokenizer.ggml.add_bos_token"] = text.add_bos
    keys["tokenizer.ggml.add_eos_token"] = len(text.ends) == 1
    if text.chat_template is not None:
        keys["tokenizer.chat_template"] = text.chat_template
    if text.tool_use is not None:
        keys["tokenizer.chat_templates"] = ["tool_use"]
        keys["tokenizer.chat_template.tool_use"] = text.tool_use
    return keys


def _ends(text: Text, eos: int | None, index: Mapping[str, int]) -> tuple[int | None, int | None, int | None]:
    """Name the tokens that stop generation: GGUF has three places for them.

    ``eos`` is the tokenizer's own where that stops at all, ``eot`` the first stop that the chat template writes, and
    ``eom`` a further one. Where each text ends with one token, as in a model that embeds, that is ``eos``.
    """
    if len(text.ends) == 1:
        return text.ends[0], None, None
    if not text.stops:
        return eos, None, None
    stops = list(text.stops)
    eos = eos if eos in stops else stops[0]
    words = {number: word for word, number in index.items()}
    template = text.chat_template or ""
    eot = next((stop for stop in stops if words.get(stop, "\0") in template), None)
    others = [stop for stop in stops if stop not in (eos, eot)]
    if eot is None and others:
        eot = others.pop(0)
    return eos, eot, others[0] if others else None


def _named(config: Json, field: str, index: Mapping[str, int]) -> int | None:
    token = config.get(field)
    text = token["content"] if isinstance(token, Mapping) else token
    return index.get(text) if isinstance(text, str) else None
