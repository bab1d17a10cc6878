"""A ``tokenizer.json`` in the form that a device loads: tables that are ready to be searched, and a small remainder.

The tokenizers library reads the vocabulary of a large model in 0.7 s, during which no other thread of Python runs,
and keeps 45 MiB of it. A bundle is written once and opened often, so the vocabulary and the merges are laid out here
as sorted arrays, when the bundle is built (``edgepack.text.compiling``), and so is what comes before the merges. Only
for a tokenizer that does there what is not known here is the library asked on a device.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgepack.errors import BundleDamagedError
from edgepack.text.words import Front

FILE = "tokenizer.bin"
LONGEST = 1024
"""Bytes of a token in ``texts``: four times the longest of any published tokenizer."""


class Tables(msgspec.Struct, frozen=True):
    """The tables of one tokenizer. Arrays are little-endian; ids are those of the model.

    ``n_tokens``: entries of the vocabulary, added tokens included. ``rest``: a tokenizer.json of the first merges,
    whose ids are places in ``ids`` (u32). ``texts`` are the tokens as
    the vocabulary writes them, in UTF-8, one after the other; ``ends`` (u32) where each id's ends. ``pairs`` (u64,
    ascending) are the merges as left << 32 | right, and ``ranks`` and ``joined`` (u32) what each of them has and
    makes. ``sorted`` (u32) are the ids of the vocabulary by text, where a word that is a token is one whatever the
    merges say, and else empty. ``splits`` says that no merge reaches over the beginning of a "▁". ``front`` is what
    comes before the merges, None where ``rest`` is needed for that.
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
    front: Front | None = None

    def text(self, id: int) -> bytes:
        """Return a token as the vocabulary writes it, in UTF-8; nothing for an id without one."""
        return bytes(self.texts[self.ends[id - 1] if id else 0 : self.ends[id]]) if 0 <= id < len(self.ends) else b""


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
            front=tables.front and msgspec.structs.replace(tables.front, starts=tables.front.starts.cast("I")),
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
    if tables.front is not None and not np.isin([*tables.front.ids()], np.frombuffer(tables.ids, "<u4")).all():
        raise ValueError("it reads a token that its remainder lacks")
    if ((pairs >> np.uint64(32)) >= rows).any() or ((pairs & np.uint64(0xFFFF_FFFF)) >= rows).any():
        raise ValueError(f"it merges a token behind the last of {rows}")
