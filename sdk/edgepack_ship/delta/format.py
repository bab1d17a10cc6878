"""A difference as a file: its header, its index, and the pieces of which files are put together.

Bytes in and values out; it opens nothing. Whatever it returns was checked: a reader follows it without further thought.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.manifest import Sha256, Size
from edgepack.errors import BundleDamagedError, BundleTooNewError

MAGIC = b"EPDELTA\n"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")
"""The magic, the version, the index's length and where it begins. Before it lie the literals, and after it nothing."""
MAX_INDEX = 8 << 20
BLOCK = 1 << 20
"""The bytes of a file that one piece with literals makes, at most: what a reader holds of it."""
LITERAL = (1 << 32) - 1
"""The source of a piece that has none."""
PIECE = np.dtype([("source", "<u4"), ("length", "<u4"), ("stored", "<u4"), ("offset", "<u8")])

Pieces = NDArray[np.void]


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the base does not have. ``pieces`` are records of ``PIECE``, in the file's order.

    A piece makes ``length`` bytes. Without literals (``stored`` is 0) they are those of a source from ``offset`` on.
    With literals it is ``stored`` bytes of them, deflated where they are fewer than ``length``: of a piece without a
    source they are the file's bytes, of another what is added to the source's, each byte modulo 256.
    """

    sha256: Sha256
    size: Size
    pieces: bytes

    def table(self) -> Pieces:
        """Return the pieces as an array of ``PIECE``, without a copy."""
        return np.frombuffer(self.pieces, PIECE)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a difference holds: the ids of both bundles and of the new one's draft, the sha256 of the new model.sig and
    of the base's files that pieces read, and the files that are made.

    Manifests and model.sig are files like any other here. A file of the new bundle that is not made is the base's, with
    the same sha256. The literals stand in the order of ``made`` and of the pieces.
    """

    base: Sha256
    bundle: Sha256
    draft: Sha256 | None
    signature: Sha256 | None
    sources: Annotated[list[Sha256], msgspec.Meta(max_length=1 << 13)]
    made: Annotated[list[Made], msgspec.Meta(max_length=1 << 13)]


def header(data: bytes, size: int, place: str) -> tuple[int, int]:
    """Return where the index of a difference of so many bytes begins, and its length. ``data`` is its ``HEADER``.

    Raises ``BundleDamagedError`` and ``BundleTooNewError``; ``place`` is what they call the file.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise damaged(place, "it does not begin as a difference does")
    _, version, length, begin = HEADER.unpack(data)
    if version > VERSION:
        raise BundleTooNewError(
            f"{place} is a difference of version {version}, and this edgepack reads {VERSION}.",
            hint="Upgrade edgepack on this machine.",
        )
    if length > MAX_INDEX or begin < HEADER.size or begin + length != size:
        raise damaged(place, "it is cut short, or longer than it says")
    return begin, length


def index(data: bytes, literals: int, place: str) -> Index:
    """Return the index of a difference, checked but for what depends on the base, which is ``fits``.

    ``literals`` are the bytes between header and index: the pieces take them all, each once.
    Raises ``BundleDamagedError``; ``place`` is what it calls the file.
    """
    try:
        found = msgspec.msgpack.decode(data, type=Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise damaged(place, f"its index is none: {error}") from None
    stored = 0
    for made in found.made:
        if len(made.pieces) % PIECE.itemsize:
            raise damaged(place, "a table of pieces is cut short")
        pieces = made.table()
        source, length, of_stored = pieces["source"], pieces["length"], pieces["stored"]
        wrong = (length == 0) | (of_stored > length)
        wrong |= (of_stored > 0) & (length > BLOCK)
        wrong |= (source == LITERAL) & (of_stored == 0)
        wrong |= (source != LITERAL) & (source >= len(found.sources))
        if wrong.any():
            raise damaged(place, f"piece {int(wrong.argmax())} of sha256:{made.sha256} makes no sense")
        if int(length.sum(dtype=np.uint64)) != made.size:
            raise damaged(place, f"the pieces of sha256:{made.sha256} make another size")
        stored += int(of_stored.sum(dtype=np.uint64))
    if stored != literals or len({made.sha256 for made in found.made}) != len(found.made):
        raise damaged(place, "its pieces and its literals differ")
    return found


def fits(made: Made, sizes: NDArray[np.int64], place: str) -> bool:
    """Say whether all sources of a file are here. ``sizes`` are those of the index's sources, -1 of one that is not.

    Raises ``BundleDamagedError`` where a piece reads more than its source has.
    """
    pieces = made.table()
    pieces = pieces[pieces["source"] != LITERAL]
    size = sizes[pieces["source"]]
    left = size - pieces["length"]
    if ((size >= 0) & ((left < 0) | (pieces["offset"] > left.clip(0).astype(np.uint64)))).any():
        raise damaged(place, f"a piece of sha256:{made.sha256} ends behind what it is read from")
    return not (size < 0).any()


def damaged(place: str, what: str) -> BundleDamagedError:
    """Return the error of a file that is no difference, or not the one that was made."""
    return BundleDamagedError(f"{place} is damaged: {what}.", hint="Get the difference again.")
