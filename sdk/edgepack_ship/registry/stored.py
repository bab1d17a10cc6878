"""A repository of an OCI registry, as the distribution specification has it, and a bundle in one on its way in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from edgepack.bundle.files import DRAFT, MANIFEST, MAX_MANIFEST, MAX_SIGNATURE, SIGNATURE
from edgepack.bundle.manifest import File
from edgepack.errors import TransferError
from edgepack_ship.contents import Contents, contents
from edgepack_ship.registry import artifact
from edgepack_ship.registry.address import Reference
from edgepack_ship.registry.artifact import MAX_ARTIFACT, OCI_MANIFEST, Artifact, digest_of
from edgepack_ship.registry.client import Client, Cut
from edgepack_ship.registry.download import download

_PIECE = 1 << 16
"""Bytes that are sent at once: each has the time that the system is given to take them."""


class Repository:
    """The repository of a reference. Raises ``TransferError`` for all that a registry may answer or refuse."""

    def __init__(self, reference: Reference, client: Client) -> None:
        self.reference, self._client = reference, client
        self._base = f"{client.home}/v2/{reference.repository}"

    def artifact(self) -> tuple[str, Artifact]:
        """Return the digest of the referenced artifact, and what it says."""
        place, named = str(self.reference), self.reference.named
        address = f"{self._base}/manifests/{named}"
        data = self._client.fetch(address, MAX_ARTIFACT, place, {"Accept": OCI_MANIFEST})
        found = digest_of(data)
        if self.reference.digest not in (None, found):
            raise TransferError(f"The registry gives another artifact for {place}: {found}.", hint="Ask who runs it.")
        return found, artifact.decode(data, place)

    def bytes_of(self, digest: str, limit: int, what: str) -> bytes:
        """Return a blob of at most ``limit`` bytes, which has this digest."""
        data = self._client.fetch(self._blob(digest), limit, what)
        if digest_of(data) != digest:
            raise TransferError(f"The registry gives other bytes for {what}: their sha256 differs.", hint="Try again.")
        return data

    def blocks(self, digest: str, size: int, begin: int) -> Iterator[bytes]:
        """Yield a blob of ``size`` bytes from the byte ``begin`` on; who reads compares the digest."""
        return download(self._client, self._blob(digest), size, begin)

    def holds(self, digest: str) -> bool:
        """Say whether the repository has a blob."""

        def once() -> bool:
            with self._client.exchange("HEAD", self._blob(digest)) as answer:
                if answer.status not in (200, 404):
                    raise answer.refusal(digest)
                return answer.status == 200

        return self._client.tried(once)

    def upload(self, digest: str, size: int, blocks: Callable[[], Iterable[bytes]]) -> None:
        """Send a blob, the whole of it anew where the connection is cut; ``blocks`` gives its bytes each time."""

        def once() -> None:
            with self._client.exchange("POST", f"{self._base}/blobs/uploads/", {"Content-Length": "0"}) as answer:
                if answer.status != 202:
                    raise answer.refusal("an upload")
                place = self._client.joined(answer)
            place += f"{'&' if '?' in place else '?'}digest={digest}"
            self._put(place, size, "application/octet-stream", blocks, "what was uploaded")

        self._client.tried(once)

    def name(self, manifest: bytes) -> None:
        """Give an artifact the reference's tag, once all its blobs are there."""
        place = f"{self._base}/manifests/{self.reference.tag}"
        self._client.tried(
            lambda: self._put(place, len(manifest), OCI_MANIFEST, lambda: [manifest], str(self.reference))
        )

    def _put(self, place: str, size: int, media_type: str, blocks: Callable[[], Iterable[bytes]], what: str) -> None:
        headers = {"Content-Type": media_type, "Content-Length": str(size)}
        with self._client.exchange("PUT", place, headers, lambda: _pieces(blocks())) as answer:
            if answer.status == 404:  # the registry forgot the upload that it began
                raise Cut(f"{answer.host} has lost an upload")
            if answer.status not in (201, 204):
                raise answer.refusal(what)

    def _blob(self, digest: str) -> str:
        return f"{self._base}/blobs/{digest}"


class Stored:
    """A bundle in a registry. Only the files that are asked for come over the network.

    The bundle's manifest says what they are; of the artifact, three layers are found by their names, which are compared
    with what they are to be and are never a path.
    """

    def __init__(self, reference: Reference, client: Client) -> None:
        self.place = str(reference)
        self._client, self._repository = client, Repository(reference, client)
        self._found: tuple[str, Artifact] | None = None
        self._contents: Contents | None = None

    @property
    def digest(self) -> str:
        """The digest of the artifact, by which no one can put another in its place."""
        return self._artifact()[0]

    def contents(self) -> Contents:
        if self._contents is None:
            self._contents = contents(self._manifest)
        return self._contents

    def signature(self) -> bytes | None:
        layer = self._artifact()[1].layer(SIGNATURE)
        return None if layer is None else self._repository.bytes_of(layer.digest, MAX_SIGNATURE, SIGNATURE)

    def variants(self) -> tuple[str, ...]:
        listed, held = self.contents().manifest.variants, self._artifact()[1].digests()
        return tuple(each.id for each in listed if all(f"sha256:{file.sha256}" in held for file in each.files))

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        return self._repository.blocks(f"sha256:{file.sha256}", file.size, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _artifact(self) -> tuple[str, Artifact]:
        if self._found is None:
            self._found = self._repository.artifact()
        return self._found

    def _manifest(self, name: str) -> bytes:
        layer = self._artifact()[1].layer(name) if name in (MANIFEST, f"{DRAFT}/{MANIFEST}") else None
        if layer is None:
            raise TransferError(
                f"{self.place} holds no bundle of edgepack: it has no {name}.", hint="Check the repository and the tag."
            )
        return self._repository.bytes_of(layer.digest, MAX_MANIFEST, name)


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for begin in range(0, len(block), _PIECE):
            yield block[begin : begin + _PIECE]
