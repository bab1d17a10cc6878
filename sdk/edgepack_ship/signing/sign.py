"""A bundle that was checked gets its model.sig: the one file beside a manifest that changes no id."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from edgepack.bundle.files import SIGNATURE, Bundle, Progress
from edgepack.errors import BundleError, UsageError
from edgepack.trust import statement, vouching
from edgepack.trust.statement import Envelope, Statement
from edgepack_ship.signing.keys import PrivateKey


def sign(bundle: Bundle, key: PrivateKey, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Sign an open bundle, every file of which is read and compared first; return the path of its model.sig.

    What is signed are the digests of all files that the manifests list, those of variants that are not in this copy
    too. ``force`` replaces a signature. Raises ``UsageError`` where it has one, ``BundleDamagedError`` for a damaged
    bundle and ``BundleError`` where the folder cannot be written to; the signature that was there stays then.
    """
    place = bundle.path / SIGNATURE
    if not force and os.path.lexists(place):
        raise UsageError(f"{bundle.path} is signed already.", hint="Add --force to replace its signature.")
    bundle.check(progress=progress)
    write(place, signed(bundle, key))
    return place


def signed(bundle: Bundle, key: PrivateKey) -> bytes:
    """Return the bytes of model.sig for an open bundle. No file is read but a manifest."""
    payload = statement.written(Statement(bundle.manifest.name, vouching.digests(vouching.whole(bundle))))
    message = Envelope(payload, b"").message
    return statement.sealed(Envelope(payload, key.sign(message), key.public.fingerprint))


def write(place: Path, data: bytes) -> None:
    """Write a signature whole or not at all, and through to the disk. Raises ``BundleError``."""
    # What a crash leaves must not make the bundle one that has a file too many: readers pass over names like this.
    beside = place.with_name(f"._{place.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            folder = os.open(place.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise BundleError(f"{place} cannot be written: {error.strerror}.", hint="Check its permissions.") from None
