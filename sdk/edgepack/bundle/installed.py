"""Bundles that are installed on this device: where stores are, and what a name in one stands for.

It reads; ``edgepack install`` writes. A store is a folder::

    names/<name>.json    which bundle the name stands for, and which one before: a ``Reference``
    bundles/<id>/        bundles, each in a folder that is named by its id

``docs/shipping.md`` has the rest of it, which only who writes needs to know.
"""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from edgepack.errors import BundleDamagedError, BundleError

STORE = "EDGEPACK_STORE"
NAMES, BUNDLES = "names", "bundles"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
"""What a bundle may be installed as: no separator, no leading dot, nothing that a shell or a file system changes."""

_LARGEST = 1 << 16

_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a name stands for: the id of its bundle, and of the one before, to which ``edgepack rollback`` returns.

    ``highest`` is the highest sequence that the name ever stood for; a lower one is a downgrade.
    """

    current: _Id
    previous: _Id | None = None
    highest: int = 0


def stores() -> list[Path]:
    """Return the folders in which names are looked up, the first first; they need not be there.

    ``EDGEPACK_STORE`` names them as PATH names folders. Without it: the user's own, then the system's.
    """
    if named := os.environ.get(STORE):
        return [Path(each) for each in named.split(os.pathsep) if each]
    return [*_users(), system_store()]


def system_store() -> Path:
    """Return the store of the whole machine, which its administrator writes and every user reads."""
    if platform.system() == "Darwin":
        return Path("/Library/Application Support/edgepack/store")
    return Path("/var/lib/edgepack/store")


def find(name: str, within: Sequence[Path] | None = None) -> Path | None:
    """Return the folder of the bundle that a name stands for, None where no store knows it.

    ``within`` are the stores, the first that knows the name decides. Raises ``BundleError`` where its reference cannot
    be read, and ``BundleDamagedError`` where it is none.
    """
    if not NAME.fullmatch(name):
        return None
    for store in stores() if within is None else within:
        if (reference := read(store, name)) is not None:
            return store / BUNDLES / reference.current
    return None


def known() -> list[str]:
    """Return the names that stand for a bundle, sorted. A store that cannot be read has none."""
    found: set[str] = set()
    for store in stores():
        with suppress(OSError):
            files = [file.removesuffix(".json") for file in os.listdir(store / NAMES) if file.endswith(".json")]
            found |= {name for name in files if NAME.fullmatch(name)}
    return sorted(found)


def read(store: Path, name: str) -> Reference | None:
    """Return what a name stands for in a store, None where it does not know it. Raises as ``find``."""
    place = store / NAMES / f"{name}.json"
    try:
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            data = os.read(descriptor, _LARGEST) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError(f"{place} cannot be read: {error.strerror}.", hint="Check its permissions.") from None
    try:
        return msgspec.json.decode(data, type=Reference)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleDamagedError(f"{place} is no reference to a bundle: {error}.", hint="Install it again.") from None


def _users() -> list[Path]:
    if platform.system() == "Darwin":
        place = Path("~/Library/Application Support/edgepack/store")
    else:
        place = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "edgepack/store"
    try:
        return [place.expanduser()]
    except RuntimeError:  # a user without a home
        return []
