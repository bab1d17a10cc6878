"""The vocabulary that a GGUF file carries, read by llama.cpp's own tokenizer, without the weights."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.errors import EngineError
from edgepack_runtimes.gguf import abi, header, log
from edgepack_runtimes.gguf.differences import Differences
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
    # A token takes a byte or more, but for what a vocabulary puts before a text. Without room for all of them it says
    # how many there are, as a negative number.
    count = -len(text) - 1
    while count < 0:
        ids = (ctypes.c_int32 * -count)()
        count = native.llama_tokenize(vocabulary, text, len(text), ids, len(ids), False, special)
    return ids[:count]


def known_differences(
    path: Path, tokenizer: Mapping[str, object], texts: Sequence[str], *, special: bool
) -> list[str | None]:
    """Return for each text why llama.cpp cannot tokenise it as a parsed tokenizer.json does, None where it can."""
    keys = header.read(path).metadata
    rules = Differences(tokenizer, str(keys["tokenizer.ggml.model"]), str(keys["tokenizer.ggml.pre"]))
    return [rules.explain(text, special=special) for text in texts]
