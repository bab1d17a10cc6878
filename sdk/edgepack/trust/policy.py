"""policy.toml: which keys may sign which bundles on a device, and what else it asks of them. Text in, values out.

It opens nothing and knows no clock. ``docs/shipping.md`` defines each field; one that it does not is an error, since a
rule that is not understood must not be passed over.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from fnmatch import fnmatchcase
from typing import Annotated

import msgspec

from edgepack.bundle.manifest import PlainName
from edgepack.errors import TrustError
from edgepack.trust.vouching import Contents

VERSION = 1
MAX_POLICY = 1 << 18

# A name is a stranger's: a longer one is matched by nothing.
_LONGEST = 256
_OPERATORS = re.compile(r"\s+(?:AND|OR)\s+|[()]", re.IGNORECASE)

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""A name, or a glob over names: ``*``, ``?`` and ``[...]``."""


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Key(_Plain, frozen=True, kw_only=True):
    """A public key that is pinned: its PEM text, or the file of it, relative to the policy's folder.

    ``bundles`` are the names that it may sign, and ``not_after`` is the last day, in UTC, on which this device believes
    it. A signature does not prove when it was made: from the next day on it vouches for nothing, old or new.
    """

    name: PlainName
    bundles: Annotated[list[Pattern], msgspec.Meta(min_length=1)]
    pem: str | None = None
    file: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    not_after: datetime.date | None = None

    def signs(self, name: str) -> bool:
        """Say whether the key may sign bundles of this name."""
        return any(_matches(name, pattern) for pattern in self.bundles)


class Policy(_Plain, frozen=True, kw_only=True):
    """The whole file. A bundle must be signed by one of the keys, and meet everything else that is said.

    ``proven`` refuses variants without a proof, ``licences`` every licence that none of them matches, the draft's too;
    ``minimum_sequence`` is the lowest sequence by names, of which all that match hold.
    """

    version: int
    key: Annotated[list[Key], msgspec.Meta(min_length=1, max_length=64)]
    proven: bool = False
    licences: Annotated[list[Pattern], msgspec.Meta(min_length=1)] | None = None
    minimum_sequence: dict[Pattern, Annotated[int, msgspec.Meta(ge=0)]] = {}

    def broken(self, contents: Contents) -> str | None:
        """Return what a bundle lacks of what is asked beside a signature, the end of a sentence; None for nothing."""
        manifest = contents.manifest
        least = max((n for each, n in self.minimum_sequence.items() if _matches(manifest.name, each)), default=0)
        if manifest.sequence < least:
            return f"its sequence is {manifest.sequence}, and {least} is the lowest that is taken"
        for place, each in {"": contents, "draft/": contents.draft}.items():
            if each is None:
                continue
            unproven = [
                v.id for v in each.manifest.variants if v.proof is None or not all(g.passes for g in v.proof.gates)
            ]
            if self.proven and unproven:
                return f"its variant {place}{unproven[0]} is not proven"
            licence = each.manifest.license.id
            if self.licences is not None and not _allowed(licence, self.licences):
                return f"its licence {'of the draft ' if place else ''}is {licence!r}"
        return None


class _Head(msgspec.Struct):
    version: int


def decode(data: bytes, place: str) -> Policy:
    """Parse a policy. ``place`` is its path, for sentences. Raises ``TrustError`` for anything but a whole one."""
    try:
        if len(data) > MAX_POLICY:
            raise ValueError(f"it has more than {MAX_POLICY:,} bytes")
        plain = tomllib.loads(data.decode())
        version = msgspec.convert(plain, _Head).version
        if version != VERSION:
            raise TrustError(
                f"{place} is of version {version}; this edgepack reads version {VERSION}.",
                hint="Upgrade with: pip install -U edgepack",
            )
        policy = msgspec.convert(plain, Policy)
        names = [key.name for key in policy.key]
        for number, key in enumerate(policy.key):
            if (key.pem is None) == (key.file is None):
                raise ValueError(f"Object has either `pem` or `file` - at `$.key[{number}]`")
            if key.name in names[:number]:
                raise ValueError(f"The name {key.name!r} stands there twice - at `$.key[{number}].name`")
    except (ValueError, RecursionError) as error:  # of tomllib, of msgspec, of a text that is not UTF-8
        if isinstance(error, TrustError):
            raise
        raise TrustError(
            f"{place} is no policy: {error}.", hint="Mend it: a policy that is not understood admits nothing."
        ) from None
    return policy


def _matches(name: str, pattern: str) -> bool:
    return len(name) <= _LONGEST and fnmatchcase(name, pattern)


def _allowed(licence: str, patterns: list[str]) -> bool:
    """Say whether the patterns have an SPDX expression, or each licence in it: capitals do not matter in those."""
    wanted = [pattern.lower() for pattern in patterns]
    if len(licence) > _LONGEST:
        return False
    parts = [part for part in map(str.strip, _OPERATORS.split(licence.lower())) if part]
    return any(_matches(licence.lower(), each) for each in wanted) or (
        bool(parts) and all(any(_matches(part, each) for each in wanted) for part in parts)
    )
