"""A ``tokenizer.json`` in the form that a device loads: tables that are ready to be searched, and a small remainder.

The tokenizers library reads the vocabulary of a large model in 0.7 s, during which no other thread of Python runs,
and keeps 45 MiB of it. A bundle is written once and opened often, so the vocabulary and the merges are laid out here
as sorted arrays, when the bundle is built. What remains for the library is everything that a tokenizer does to a text
before BPE, and the merges that come first in rank, of which most of the work consists (``edgepack.text.bpe`` does the
rest).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, Literal

import msgspec
import numpy as np

from edgepack.errors import BundleDamagedError, BundleError, UnsupportedModelError

FILE = "tokenizer.bin"
FIRST = 4096
"""Merges that are left to the library, by rank: read in 10 ms, and on English text they leave few for ``bpe``."""
LONGEST = 1024
"""Bytes of a token in ``texts``: four times the longest of any published tokenizer."""

_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
_KEPT = ("unk_token", "fuse_unk", "byte_fallback")
_SPACE = "\u2581"


class Tables(msgspec.Struct, frozen=True):
    """The tables of one tokenizer. Arrays are little-endian; ids are those of the model.

    ``n_tokens``: entries of the vocabulary, added tokens included. ``rest``: a tokenizer.json of the first merges,
    whose ids are places in ``ids`` (u32). ``texts`` are the tokens as
    the vocabulary writes them, in UTF-8, one after the other; ``ends`` (u32) where each id's ends. ``pairs`` (u64,
    ascending) are the merges as left << 32 | right, and ``ranks`` and ``joined`` (u32) what each of them has and
    makes. ``sorted`` (u32) are the ids of the vocabulary by text, where a word that is a token is one whatever the
    merges say, and else empty. ``splits`` says that no merge reaches over the beginning of a "▁".
    """

    n_tokens: int
    rest: str
    ids: memoryview
    texts: memoryview
    ends: memoryview
    pairs: memoryview
    ranks: memoryview
    joined: memoryview
    sorted: memoryview
    splits: bool


def encode(tables: Tables) -> bytes:
    """Return the bytes of the file: MessagePack, the same for the same tables."""
    return msgspec.msgpack.encode(tables)


def decode(data: bytes) -> Tables:
    """Return the tables of a file, which share its memory, checked whole: no reader looks behind the end of one.

    Raises ``BundleDamagedError`` for another file.
    """
    try:
        tables = msgspec.msgpack.decode(data, type=Tables)
        tables = msgspec.structs.replace(
            tables,
            **{name: getattr(tables, name).cast("I") for name in ("ids", "ends", "ranks", "joined", "sorted")},
            pairs=tables.pairs.cast("Q"),
        )
        _check_tables(tables)
    except (ValueError, TypeError, RecursionError) as error:  # of msgspec, of a cast, of a text that is not UTF-8
        raise damaged(str(error)) from None
    return tables


def damaged(what: str) -> BundleDamagedError:
    """Return the error for a file that is not what it should be."""
    return BundleDamagedError(f"{FILE} is damaged: {what}.", hint="Build or copy the bundle again.")


def _check_tables(tables: Tables) -> None:
    """Raise ``ValueError`` for tables that do not fit together."""
    ends, pairs = np.frombuffer(tables.ends, "<u4"), np.frombuffer(tables.pairs, "<u8")
    texts = np.frombuffer(tables.texts, np.uint8)
    rows = len(ends)
    if not 0 < tables.n_tokens <= rows:
        raise ValueError(f"it counts {tables.n_tokens} tokens in {rows} rows")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if lengths.min() < 0 or lengths.max() > LONGEST or ends[-1] != len(texts):
        raise ValueError(f"the texts of its tokens do not follow each other, or one has more than {LONGEST} bytes")
    str(tables.texts, "utf-8")
    begins = (ends - lengths)[lengths > 0].astype(np.int64)
    if (texts[begins] & 0xC0 == 0x80).any():
        raise ValueError("a token begins within a character")
    if not len(pairs) == len(tables.ranks) == len(tables.joined) or (pairs[1:] <= pairs[:-1]).any():
        raise ValueError("its merges are not in order")
    for ids in (tables.ids, tables.joined, tables.sorted):
        if np.frombuffer(ids, "<u4").max(initial=0) >= rows:
            raise ValueError(f"it names a token behind the last of {rows}")
    if ((pairs >> np.uint64(32)) >= rows).any() or ((pairs & np.uint64(0xFFFF_FFFF)) >= rows).any():
        raise ValueError(f"it merges a token behind the last of {rows}")


def compile_tokenizer(json_bytes: bytes, first: int = FIRST) -> Tables:
    """Return the tables of a ``tokenizer.json``, whose ``first`` merges are left to the library.

    Raises ``BundleError`` for a file that is no tokenizer, ``UnsupportedModelError`` for one that is not plain BPE.
    """
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
    return _tables(document, native.get_vocab(with_added_tokens=True), merges, first)


def _check(model: Mapping[str, Any]) -> None:
    said = [name for name in _UNSUPPORTED if model.get(name)]
    if "merges" not in model or said:
        what = f"BPE with {said[0]}" if said else f"a model of type {model.get('type')}"
        raise UnsupportedModelError(
            f"tokenizer.json: {what} is not supported.", hint="Only plain BPE is, which all known families use."
        )


def _tables(document: Mapping[str, Any], id_of: Mapping[str, int], merges: list[tuple[str, str]], first: int) -> Tables:
    model = document["model"]
    rest = _rest(document, merges[:first])
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
        splits=_splits(id_of, merges),
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
