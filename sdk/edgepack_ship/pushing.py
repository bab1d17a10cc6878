"""A bundle is sent to a registry: what is there already stays there, the artifact gets its tag when all of it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgepack.bundle.files import Progress
from edgepack.bundle.manifest import File
from edgepack.errors import UsageError
from edgepack_ship.incoming import Incoming
from edgepack_ship.registry.address import Reference
from edgepack_ship.registry.artifact import Composed, compose
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.stored import Repository
from edgepack_ship.writing import checked


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed: the bundle's id, the artifact's digest, and the reference by that digest, which never changes.

    ``sent`` and ``there`` count the bytes of blobs that went over the network, and that the registry had.
    """

    id: str
    digest: str
    reference: str
    variants: tuple[str, ...]
    sent: int
    there: int


def push(incoming: Incoming, reference: Reference, client: Client, progress: Progress | None = None) -> Pushed:
    """Push a bundle, with the variants that are here, and return what was sent.

    ``progress`` gets each block's file and length in bytes, for what is there already too. Raises ``UsageError`` for a
    reference by digest, ``BundleError`` for a bundle that differs from its manifest, and ``TransferError``.
    """
    if reference.digest is not None or reference.tag is None:
        raise UsageError(f"{reference} names a digest, which follows from what is pushed.", hint="Name a tag: :1.0")
    inside, variants = incoming.contents(), incoming.variants()
    composed = compose(inside, incoming.signature(), variants)
    repository = Repository(reference, client)
    sent = there = 0
    for digest, (name, size) in _blobs(composed).items():
        if repository.holds(digest):
            there += size
            if progress is not None:
                progress(name, size)
        else:
            sent += size
            repository.upload(digest, size, lambda: _blocks(incoming, composed, digest, progress))  # noqa: B023
    repository.name(composed.manifest)
    named = f"{Reference(reference.host, reference.repository, digest=composed.digest)}"
    return Pushed(inside.id, composed.digest, named, variants, sent, there)


def _blobs(composed: Composed) -> dict[str, tuple[str, int]]:
    return {**composed.files, **{digest: ("", len(data)) for digest, data in composed.held.items()}}


def _blocks(incoming: Incoming, composed: Composed, digest: str, progress: Progress | None) -> Iterator[bytes]:
    """Yield a blob, which is compared with its digest on the way: other bytes are never sent whole."""
    held = composed.held.get(digest)
    name, size = composed.files.get(digest, ("", 0))
    blocks: Iterable[bytes] = [held] if held is not None else ()
    if held is None:
        file = File(path=name, size=size, sha256=digest.removeprefix("sha256:"))
        blocks = checked(incoming.blocks(name, file), name, file)
    for block in blocks:
        yield block
        if progress is not None:
            progress(name, len(block))
