"""What a statement must say to vouch for a bundle: the manifest, and every file as the manifest has it.

Values in, a verdict out. The digest of manifest.json is the bundle's id, and the manifest has the digest of every other
file: so no file is read here, and a copy from which variants were left out is vouched for like the whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import DRAFT, MANIFEST, Bundle, listed
from edgepack.bundle.manifest import Manifest
from edgepack.errors import TrustError
from edgepack.trust.statement import Statement


class Contents(Protocol):
    """A bundle by its manifests: what a folder, an archive or a registry says that it has."""

    @property
    def id(self) -> str:
        """The sha256 of manifest.json, 64 hex digits."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The whole manifest, with the variants that are not in this copy."""
        ...

    @property
    def draft(self) -> Contents | None:
        """The same of the bundle of its draft model, None without one."""
        ...


def whole(bundle: Bundle) -> Bundle:
    """Return an open bundle with its whole manifest, read again where variants are not in this copy.

    Raises ``BundleDamagedError`` where another one lies there by now.
    """
    manifest = manifests.decode(bundle.read(MANIFEST)) if bundle.absent else bundle.manifest
    return replace(bundle, manifest=manifest, absent=(), draft=None if bundle.draft is None else whole(bundle.draft))


def digests(contents: Contents) -> dict[str, str]:
    """Return the sha256 of every file of a bundle, its manifests among them, by its path relative to the folder."""
    drafts = {} if contents.draft is None else digests(contents.draft)
    return {
        MANIFEST: contents.id,
        **{name: file.sha256 for name, file in listed(contents.manifest).items()},
        **{f"{DRAFT}/{name}": digest for name, digest in drafts.items()},
    }


def check(statement: Statement, contents: Contents) -> None:
    """Raise ``TrustError`` where a statement is not of this very bundle: it names what is different first by path."""
    ours, signed = digests(contents), statement.files
    if signed.get(MANIFEST) != ours[MANIFEST]:
        what = "names no manifest.json" if MANIFEST not in signed else f"is of sha256:{signed[MANIFEST]}"
        raise TrustError(
            f"The signature is not of this bundle, sha256:{contents.id}: it {what}.",
            hint="Get the bundle and its model.sig from one place, or sign it again.",
        )
    for name in sorted(ours.keys() | signed.keys()):
        if name not in signed:
            what = f"{name}, which the manifest lists, is not signed"
        elif name not in ours:
            what = f"it names {name}, which the manifest does not list"
        elif signed[name] != ours[name]:
            what = f"it has another digest for {name} than the manifest"
        else:
            continue
        raise TrustError(
            f"The signature does not agree with the bundle: {what}.",
            hint="Sign the folder of the bundle and nothing else.",
        )
