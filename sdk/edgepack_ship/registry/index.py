"""What a folder of bundles on a web server says of itself: ``index.json``. Bytes in and values out.

Beside it lie ``objects/sha256/xx/...``: every file, manifest and signature under its digest. ``docs/bundle-format.md``
defines each field; this is the same in types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from edgepack.bundle.manifest import Sha256
from edgepack.errors import BundleTooNewError, TransferError, UsageError, brief

INDEX = "index.json"
VERSION: Final = 1
MAX_INDEX = 8 << 20

_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bundle in the folder. ``variants`` are the ids of those whose files are there."""

    name: str
    version: str
    id: Sha256
    variants: list[str]
    sequence: _Size = 0
    draft: Sha256 | None = None
    signature: Sha256 | None = None


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole document; of two bundles of one name and sequence, the later one is the newer."""

    version: Literal[1]
    bundles: Annotated[list[Listed], msgspec.Meta(max_length=10_000)]

    def find(self, name: str | None, place: str) -> Listed:
        """Return the bundle of a name, the highest in sequence, or of an id, "sha256:...". None: that of the only name.

        Raises ``UsageError`` where there is none, and where only a name could tell.
        """
        names = list(dict.fromkeys(each.name for each in self.bundles))
        if name is None and len(names) == 1:
            name = names[0]
        found = [each for each in self.bundles if name in (each.name, f"sha256:{each.id}")]
        if not found:
            known = f"It has: {brief(', '.join(names), 400)}." if names else "It has none."
            said = f"{place} has no bundle {name!r}." if name is not None else f"{place} has {len(names)} bundles."
            raise UsageError(said, hint=f"{known} Name one behind a #." if names else known)
        return max(reversed(found), key=lambda each: each.sequence)

    def adding(self, bundles: Iterable[Listed]) -> Index:
        """Return an index with other bundles behind those that are there, each id once."""
        new = {each.id: each for each in bundles}
        return Index(self.version, [*(each for each in self.bundles if each.id not in new), *new.values()])


EMPTY = Index(VERSION, [])


def encode(index: Index) -> bytes:
    """Return the bytes of an index."""
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def decode(data: bytes, place: str) -> Index:
    """Return an index of its bytes. Raises ``TransferError`` for what is none, and ``BundleTooNewError``."""
    try:
        if msgspec.json.decode(data, type=_Head).version > VERSION:
            raise BundleTooNewError(
                f"{place} is newer than this edgepack reads.", hint="Upgrade with: pip install -U edgepack"
            )
        return msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise TransferError(
            f"{place} is no index of bundles: {error}.", hint="Check the address: it is what edgepack mirror wrote."
        ) from None


def object_path(sha256: str) -> str:
    """Return where a file lies, relative to the folder."""
    return f"objects/sha256/{sha256[:2]}/{sha256}"


class _Head(msgspec.Struct):
    version: int
