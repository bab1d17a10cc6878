"""What a bundle consists of, by its manifests alone: every file with its size and digest, before any of them is here.

Bytes in and values out; it opens nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from unicodedata import normalize

from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import DRAFT, MANIFEST, SIGNATURE, VARIANTS, listed
from edgepack.bundle.manifest import File, Manifest
from edgepack.errors import BundleDamagedError, UsageError


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle by its manifests. ``data`` are the bytes of manifest.json, ``id`` is their sha256; ``draft`` the same of
    the bundle of its draft model, None without one."""

    data: bytes
    id: str
    manifest: Manifest
    draft: Contents | None

    @property
    def variants(self) -> tuple[str, ...]:
        """The ids of the variants that the manifest lists, in its order."""
        return tuple(each.id for each in self.manifest.variants)

    def manifests(self) -> dict[str, bytes]:
        """Return the bytes of each manifest by its path relative to the bundle's folder, the bundle's own last: with
        it, a folder becomes a bundle."""
        drafts = {} if self.draft is None else {f"{DRAFT}/{MANIFEST}": self.draft.data}
        return {**drafts, MANIFEST: self.data}

    def files(self, variants: Iterable[str] | None = None) -> dict[str, File]:
        """Return what the manifests list, by its path relative to the bundle's folder, in the manifest's order: the
        shared files, those of the named variants (None: all), and the draft's.

        Raises ``UsageError`` for a variant that the manifest does not list.
        """
        held = set(self.chosen(variants))
        left_out = tuple(f"{VARIANTS}/{id}/" for id in self.variants if id not in held)
        files = {name: file for name, file in listed(self.manifest).items() if not name.startswith(left_out)}
        drafts = {} if self.draft is None else self.draft.files()
        return {**files, **{f"{DRAFT}/{name}": file for name, file in drafts.items()}}

    def chosen(self, variants: Iterable[str] | None) -> tuple[str, ...]:
        """Return the ids of the named variants in the manifest's order, all for None. Raises ``UsageError``."""
        wanted = self.variants if variants is None else tuple(variants)
        if unknown := next((id for id in wanted if id not in self.variants), None):
            raise UsageError(
                f"{self.manifest.name} has no variant {unknown!r}.", hint=f"It has: {', '.join(self.variants)}."
            )
        return tuple(id for id in self.variants if id in wanted)


def contents(read: Callable[[str], bytes]) -> Contents:
    """Return what a bundle consists of. ``read`` returns a manifest by its path relative to the bundle's folder.

    Raises ``BundleDamagedError`` and ``BundleTooNewError`` for what is no manifest, and whatever ``read`` raises.
    """
    data = read(MANIFEST)
    manifest = manifests.decode(data)
    listed(manifest)  # nothing stands there twice, or where it must not
    draft = None
    if manifest.draft is not None:
        draft = contents(lambda name: read(f"{DRAFT}/{name}"))
        if draft.id != manifest.draft or draft.draft is not None:
            what = "has a draft of its own" if draft.draft is not None else f"is another bundle, sha256:{draft.id}"
            raise BundleDamagedError(f"{DRAFT}/ of the bundle is damaged: it {what}.", hint="Get the bundle again.")
    found = Contents(data, hashlib.sha256(data).hexdigest(), manifest, draft)
    _check_names((*found.files(), *found.manifests(), SIGNATURE))
    return found


def _check_names(names: Iterable[str]) -> None:
    """Raise ``BundleDamagedError`` for names that are one where a file system tells neither cases nor forms of Unicode
    apart, and for a file that is a folder as well."""
    spelled: dict[str, tuple[str, bool]] = {}
    for name in names:
        folders = [name[:end] for end, letter in enumerate(name) if letter == "/"]
        for each in (*((folder, True) for folder in folders), (name, False)):
            other = spelled.setdefault(normalize("NFC", normalize("NFD", each[0]).casefold()), each)
            if other != each:
                raise BundleDamagedError(
                    f"{MANIFEST} of the bundle is damaged: {other[0]!r} and {each[0]!r} are one place on some systems.",
                    hint="Get the bundle again.",
                )
