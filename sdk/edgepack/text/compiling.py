"""From a ``tokenizer.json`` to the tables that a device loads. This needs the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

import msgspec
import numpy as np

from edgepack.errors import BundleError, UnsupportedModelError
from edgepack.extras import needed
from edgepack.text.fronts import front_of
from edgepack.text.tables import Tables

FIRST = 4096
"""Merges that are left to the library, by rank: read in 10 ms, and on English text they leave few for ``bpe``."""

_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_KEPT = ("unk_token", "fuse_unk", "byte_fallback")
_SPACE = "\u2581"


def compile_tokenizer(json_bytes: bytes, first: int = FIRST, *, library: bool = False) -> Tables:
    """Return the tables of a ``tokenizer.json``.

    Where what comes before the merges is not known here, or with ``library``, a device is to ask the library for it,
    which does the ``first`` merges, too.

    Raises ``BundleError`` for a file that is no tokenizer, ``UnsupportedModelError`` for one that is not plain BPE.
    """
    with needed("A tokenizer.json that is compiled", "tokenizers"):
        import tokenizers

    try:
        native = tokenizers.Tokenizer.from_buffer(json_bytes)
        document = json.loads(json_bytes)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise BundleError(
            f"tokenizer.json is not a tokenizer: {reason}.", hint="Fetch the model's tokenizer.json again."
        ) from None
    model = document["model"]
    _check(model)
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    id_of = native.get_vocab(with_added_tokens=True)
    splits = _splits(id_of, merges)
    # As the library writes it, each field is there.
    whole = json.loads(tokenizers.Tokenizer.from_str(json.dumps(_rest(document, ()))).to_str())
    front = None if library else front_of(whole, id_of, splits=splits)
    left = merges[:first] if front is None else []
    return msgspec.structs.replace(_tables(document, id_of, merges, left), front=front, splits=splits)


def _check(model: Mapping[str, Any]) -> None:
    said = [name for name in _UNSUPPORTED if model.get(name)]
    if "merges" not in model or said:
        what = f"BPE with {said[0]}" if said else f"a model of type {model.get('type')}"
        raise UnsupportedModelError(
            f"tokenizer.json: {what} is not supported.", hint="Only plain BPE is, which all known families use."
        )


def _tables(
    document: Mapping[str, Any],
    id_of: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    left: Sequence[tuple[str, str]],
) -> Tables:
    model = document["model"]
    rest = _rest(document, left)
    whole = sorted(model["vocab"].items(), key=lambda entry: entry[0].encode()) if model.get("ignore_merges") else []
    texts = [b""] * (max(id_of.values()) + 1)
    for text, id in id_of.items():
        texts[id] = text.encode()
    ranked = {
        id_of[left] << 32 | id_of[right]: (rank, id_of[left + right]) for rank, (left, right) in enumerate(merges)
    }
    pairs = sorted(ranked)
    return Tables(
        n_tokens=len(id_of),
        rest=json.dumps(rest, ensure_ascii=False, separators=(",", ":")),
        ids=_packed("I", _places(rest, id_of)),
        texts=memoryview(b"".join(texts)),
        ends=_packed("I", np.cumsum([len(text) for text in texts])),
        pairs=_packed("Q", pairs),
        ranks=_packed("I", [ranked[pair][0] for pair in pairs]),
        joined=_packed("I", [ranked[pair][1] for pair in pairs]),
        sorted=_packed("I", [id for _, id in whole]),
        splits=False,
    )


def _rest(document: Mapping[str, Any], merges: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return a tokenizer.json of all that BPE may begin with, a few merges, and what comes before BPE."""
    model = document["model"]
    begins = {text: id for text, id in model["vocab"].items() if len(text) == 1 or text.startswith("<0x")}
    joined = [text for left, right in merges for text in (left, right, left + right)]
    unknown = [model["unk_token"]] if model.get("unk_token") in model["vocab"] else []
    kept = begins | {text: model["vocab"][text] for text in (*joined, *unknown)}
    places = {text: place for place, (text, _) in enumerate(sorted(kept.items(), key=itemgetter(1)))}
    small = {"type": "BPE", "vocab": places, "merges": list(merges)}
    fields = ("version", "added_tokens", "normalizer", "pre_tokenizer", "decoder")
    # The library reads a document that lacks a field, and none that has a null for its version or its added tokens.
    return {name: document[name] for name in fields if name in document} | {
        "model": {name: model[name] for name in _KEPT if model.get(name)} | small
    }


def _places(rest: Mapping[str, Any], id_of: Mapping[str, int]) -> list[int]:
    """Return the model's id of each id that the library gives with the remainder."""
    import tokenizers

    small = tokenizers.Tokenizer.from_str(json.dumps(rest))
    places = sorted(small.get_vocab(with_added_tokens=True).items(), key=itemgetter(1))
    return [id_of[text] for text, _ in places]


def _splits(texts: Iterable[str], merges: Iterable[tuple[str, str]]) -> bool:
    return any(text.startswith(_SPACE) for text in texts) and not any(
        right.startswith(_SPACE) and not left.endswith(_SPACE) for left, right in merges
    )


def _packed(format: Literal["I", "Q"], values: Any) -> memoryview:
    return memoryview(np.asarray(values, f"<{format}").tobytes()).cast(format)
