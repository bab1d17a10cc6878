"""A bundle that was checked gets its model.sig: the one file beside a manifest that changes no id."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack.bundle.files import SIGNATURE, Bundle, Progress
from edgepack.errors import BundleError, UsageError
from edgepack.trust import statement, vouching
from edgepack.trust.statement import Envelope, Statement
from edgepack_ship.signing.keys import PrivateKey
from edgepack_ship.writing import replace_file


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
    try:
        replace_file(place, signed(bundle, key))
    except OSError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{place} cannot be written: {error.strerror}.", hint="Check its permissions.") from None
    return place


def signed(bundle: Bundle, key: PrivateKey) -> bytes:
    """Return the bytes of model.sig for an open bundle. No file is read but a manifest."""
    payload = statement.written(Statement(bundle.manifest.name, vouching.digests(vouching.whole(bundle))))
    message = Envelope(payload, b"").message
    return statement.sealed(Envelope(payload, key.sign(message), key.public.fingerprint))
