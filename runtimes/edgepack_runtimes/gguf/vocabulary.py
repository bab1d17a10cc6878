"""The vocabulary that a GGUF file carries, read by llama.cpp's own tokenizer, without the weights.

Source of what llama.cpp does otherwise than tokenizer.json: ``llama_vocab::impl`` in its src/llama-vocab.cpp.
"""

from __future__ import annotations

import ctypes
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from edgepack.errors import EngineError
from edgepack_runtimes.gguf import abi, header, log
from edgepack_runtimes.gguf.library import Library


def tokenize(library: Library, path: Path, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Return the ids that llama.cpp gives to each text, without BOS; with ``special``, names of control tokens parse.

    Raises ``EngineError`` for a file without a vocabulary, or one that llama.cpp cannot load.
    """
    if header.read(path).metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
        raise EngineError(f"{path} has no vocabulary.", hint="Write it from a source with a tokenizer.json.")
    native = library.native
    params: abi.ModelParams = native.llama_model_default_params()
    params.vocab_only = True
    with log.errors() as errors:
        model = native.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = "; ".join(errors[-2:]) or "the engine gave no reason"
        raise EngineError(f"llama.cpp cannot load the vocabulary of {path}: {reason}.")
    try:
        vocabulary = native.llama_model_get_vocab(model)
        return [_ids(native, vocabulary, text.encode(), special) for text in texts]
    finally:
        native.llama_model_free(model)


def _ids(native: ctypes.CDLL, vocabulary: int, text: bytes, special: bool) -> list[int]:
    # Asked without room for a single token, it says how many there are, as a negative number.
    count = -native.llama_tokenize(vocabulary, text, len(text), None, 0, False, special)
    ids = (ctypes.c_int32 * count)()
    native.llama_tokenize(vocabulary, text, len(text), ids, count, False, special)
    return list(ids)


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


# Tokens that llama.cpp makes control tokens by their name alone, so that it finds none of them in a plain text.
_CONTROL_BY_NAME = frozenset(
    {"</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"}
)


def known_difference(tokenizer: Mapping[str, object], text: str, *, special: bool) -> str | None:
    """Return why llama.cpp cannot tokenise this text as a parsed tokenizer.json does, None where it can."""
    parts = msgspec.convert(tokenizer, _Tokenizer)
    if "NFC" in _types(parts.normalizer) and unicodedata.normalize("NFC", text) != text:
        return "llama.cpp does not normalise a text, and tokenizer.json composes it first (NFC)"
    if not special:
        for added in parts.added_tokens:
            if added.content in _CONTROL_BY_NAME and not added.special and added.content in text:
                return f"llama.cpp takes {added.content} for a control token by its name, tokenizer.json does not"
    if "Metaspace" in _types(parts.pre_tokenizer):
        if text.startswith(" "):
            return "llama.cpp puts a space before a text that begins with one, the Metaspace of tokenizer.json does not"
        if any(added.content in text for added in parts.added_tokens):
            return "llama.cpp puts a space after an added token, the Metaspace of tokenizer.json does not"
    return None


def _types(step: _Step | None) -> Iterator[str]:
    if step is not None:
        yield step.type
        for inner in step.normalizers:
            yield from _types(inner)
