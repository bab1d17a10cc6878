"""What a store holds, told without reading more of it than manifests and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgepack.bundle.files import open_bundle
from edgepack.errors import BundleError
from edgepack_ship.store.place import Store

State = Literal["current", "previous", "unused"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A bundle of a store and what it is there: what ``name`` stands for, or did before, or nothing's.

    ``bytes`` are those of its files, which it may share with others. ``problem`` is the sentence of what is wrong with
    it, None where all files have their sizes; the other facts are empty then.
    """

    store: str
    name: str | None
    state: State
    id: str
    version: str = ""
    sequence: int = 0
    variants: tuple[str, ...] = ()
    bytes: int = 0
    problem: str | None = None


def entries(store: Store) -> Iterator[Entry]:
    """Yield the bundles of a store: by name, and then those that no name stands for. Raises ``BundleError``."""
    names = store.names()
    used = set()
    for name, reference in names.items():
        used |= {reference.current, reference.previous}
        yield _entry(store, name, "current", reference.current)
        if reference.previous is not None:
            yield _entry(store, name, "previous", reference.previous)
    yield from (_entry(store, None, "unused", id) for id in store.bundles() if id not in used)


def _entry(store: Store, name: str | None, state: State, id: str) -> Entry:
    folder = str(store.folder)
    try:
        bundle = open_bundle(store.bundle(id), verify="sizes", id=id)
    except BundleError as error:
        return Entry(folder, name, state, id, problem=str(error))
    held = tuple(variant.id for variant in bundle.manifest.variants)
    return Entry(folder, name, state, id, bundle.manifest.version, bundle.manifest.sequence, held, bundle.size())
