"""Where a bundle comes from, in the two documents that others' programs read: a bill of materials and a statement.

Both say in others' words what the manifest says, and nothing else: no time, no host, no path. So a build that is
repeated gives the same, and who signs the manifest signs them, because it lists them.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import msgspec

from edgepack.bundle import manifest as manifests
from edgepack.bundle.manifest import File, Manifest
from edgepack.bundle.receipt import Receipt
from edgepack_packager.provenance import bill, statement

FILES = (bill.FILE, statement.FILE)


def documents(manifest: Manifest, receipt: Receipt | None) -> dict[str, bytes]:
    """Return both documents of a manifest, which does not list them yet, by the names of their files."""
    manifest = manifests.decode(manifests.encode(manifest))  # as whoever opens the bundle reads it
    materials = bill.encode(manifest, receipt)
    others = listed(manifest, {bill.FILE: materials})
    return {bill.FILE: materials, statement.FILE: statement.encode(others)}


def listed(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """Return a manifest that lists further files, in its order."""
    more = [File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in files.items()]
    every = sorted([*manifest.files, *more], key=lambda file: PurePosixPath(file.path))
    return msgspec.structs.replace(manifest, files=every)
