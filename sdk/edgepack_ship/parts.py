"""A part of a bundle: some of its variants, in a sealed bundle of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from edgepack.bundle import manifest as manifests
from edgepack.bundle import receipt as receipts
from edgepack.bundle.files import Bundle, Progress, open_bundle
from edgepack.bundle.manifest import PARENT, File, Manifest
from edgepack.errors import UsageError
from edgepack_ship.contents import Contents
from edgepack_ship.incoming import Folder
from edgepack_ship.writing import write_bundle


def split(
    bundle: str | os.PathLike[str],
    variants: Sequence[str],
    out: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Seal the named variants of a bundle as one of their own at ``out`` and return it.

    It has the shared files, the licence, the proof and the evidence of these variants, and the whole's id as
    ``parent``. It is another bundle, so that the whole's signature does not vouch for it: sign it anew. Raises
    ``UsageError`` for a variant that the bundle does not have, and as ``write_bundle``.
    """
    if not variants:
        raise UsageError("A part needs a variant at least.", hint="Name one with --variant ID.")
    return write_bundle(Part(Path(bundle), variants), out, force=force, what="The split", progress=progress)


class Part:
    """Some variants of a bundle in a folder, as a bundle that comes in: with a manifest of its own."""

    def __init__(self, path: Path, variants: Sequence[str]) -> None:
        self._whole = Folder(path)
        self.place = self._whole.place
        whole = self._whole.contents()
        self._kept = whole.chosen(variants)
        self._changed = _receipt(path, self._kept)
        data = manifests.encode(_manifest(whole, self._kept, self._changed))
        self._contents = Contents(data, hashlib.sha256(data).hexdigest(), manifests.decode(data), whole.draft)

    def contents(self) -> Contents:
        return self._contents

    def signature(self) -> None:
        return None

    def variants(self) -> tuple[str, ...]:
        return tuple(id for id in self._whole.variants() if id in self._kept)

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        if name in self._changed:
            return iter([self._changed[name][begin:]])
        return self._whole.blocks(name, file, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _receipt(path: Path, kept: Sequence[str]) -> dict[str, bytes]:
    """Return the receipt of the kept variants by its name, nothing where the whole has none."""
    receipt = receipts.read(open_bundle(path, verify="sizes"))
    if receipt is None:
        return {}
    measured = [each for each in receipt.variants if each.variant in kept]
    if not measured:
        return {receipts.FILE: b""}
    return {receipts.FILE: receipts.encode(msgspec.structs.replace(receipt, variants=measured))}


def _manifest(whole: Contents, kept: Sequence[str], changed: dict[str, bytes]) -> Manifest:
    manifest = whole.manifest
    others = {f"evidence/{id}.json" for id in whole.variants if id not in kept}
    files = [_file(each, changed.get(each.path)) for each in manifest.files if each.path not in others]
    schema = manifest.schema
    return msgspec.structs.replace(
        manifest,
        schema=msgspec.structs.replace(schema, features=[*dict.fromkeys([*schema.features, PARENT])]),
        files=[file for file in files if file.path != receipts.FILE or file.size],
        variants=[each for each in manifest.variants if each.id in kept],
        parent=whole.id,
    )


def _file(file: File, changed: bytes | None) -> File:
    if changed is None:
        return file
    return File(path=file.path, size=len(changed), sha256=hashlib.sha256(changed).hexdigest())
