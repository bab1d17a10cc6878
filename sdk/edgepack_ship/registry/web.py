"""A bundle in a folder that a web server serves, on its way in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from edgepack.bundle.files import DRAFT, MANIFEST, MAX_MANIFEST, MAX_SIGNATURE, SIGNATURE
from edgepack.bundle.manifest import File
from edgepack.errors import TransferError
from edgepack_ship.contents import Contents, contents
from edgepack_ship.registry import index
from edgepack_ship.registry.address import WebFolder
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.download import download
from edgepack_ship.registry.index import INDEX, MAX_INDEX, Listed, object_path


class Mirrored:
    """A bundle of a web folder. The bundle's manifest says what it consists of, the index only where to begin."""

    def __init__(self, folder: WebFolder, client: Client) -> None:
        self.place = str(folder)
        self._folder, self._client = folder, client
        self._found: Listed | None = None
        self._contents: Contents | None = None

    def contents(self) -> Contents:
        if self._contents is None:
            found = contents(self._manifest)
            if found.manifest.name != self._listed().name:
                raise TransferError(
                    f"{self.place} is another bundle than its index says: {found.manifest.name}.",
                    hint="Mirror the bundle again.",
                )
            self._contents = found
        return self._contents

    def signature(self) -> bytes | None:
        sha256 = self._listed().signature
        return None if sha256 is None else self._bytes_of(sha256, MAX_SIGNATURE, SIGNATURE)

    def variants(self) -> tuple[str, ...]:
        return tuple(id for id in self.contents().variants if id in self._listed().variants)

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        return download(self._client, self._folder.url + object_path(file.sha256), file.size, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _listed(self) -> Listed:
        if self._found is None:
            data = self._client.fetch(self._folder.url + INDEX, MAX_INDEX, INDEX)
            self._found = index.decode(data, self._folder.url + INDEX).find(self._folder.name, self._folder.url)
        return self._found

    def _manifest(self, name: str) -> bytes:
        found = self._listed()
        ids = {MANIFEST: found.id, f"{DRAFT}/{MANIFEST}": found.draft}
        if (id := ids.get(name)) is None:
            raise TransferError(f"{self.place} has no {name}.", hint="Mirror the bundle again.")
        return self._bytes_of(id, MAX_MANIFEST, name)

    def _bytes_of(self, sha256: str, limit: int, what: str) -> bytes:
        data = self._client.fetch(self._folder.url + object_path(sha256), limit, what)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise TransferError(
                f"{self.place} gives other bytes for {what}: their sha256 differs.", hint="Mirror the bundle again."
            )
        return data
