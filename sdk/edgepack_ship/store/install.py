"""A bundle comes into a store: admitted, staged, whole under its id, and then what a name stands for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgepack.bundle import installed
from edgepack.bundle.files import SIGNATURE, VARIANTS, Progress, open_bundle
from edgepack.bundle.installed import Reference
from edgepack.bundle.work import flush
from edgepack.errors import BundleError, StoreError, TrustError
from edgepack.trust.admitting import gate
from edgepack_ship.contents import Contents
from edgepack_ship.incoming import Incoming
from edgepack_ship.store.place import Store, plain
from edgepack_ship.store.staging import known_files, receive, settle
from edgepack_ship.writing import refuse_missing, replace_file, write_file

Admit = Callable[[Contents, bytes | None], None]
"""Raises ``TrustError`` for a bundle that must not come in. It gets the contents and the signature. None: the policies
that apply to the store, ``edgepack.trust.admitting.gate``."""

Check = Callable[[Path], None]
"""Raises for a bundle that must not be used here, as one that its engine does not replay. It gets the folder."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What an install did: the name, what it stands for now and before, and the variants that are there."""

    name: str
    id: str
    path: Path
    previous: str | None
    variants: tuple[str, ...]


def install(
    store: Store,
    incoming: Incoming,
    name: str | None = None,
    variants: Iterable[str] | None = None,
    *,
    admit: Admit | None = None,
    check: Check = lambda folder: None,
    allow_downgrade: bool = False,
    waiting: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Installed:
    """Install a bundle, or the named ones of its variants, and let a name stand for it: the bundle's own, if no other.

    At every moment the name stands for what it stood for, whole, or for the new bundle, whole. What came in before an
    error or a loss of power is taken up by the next try. Variants that are installed under the same id stay. Raises
    ``TrustError`` for what is not admitted and for a lower sequence without ``allow_downgrade``, ``BundleError`` for
    what is damaged, ``UsageError`` for a name or a variant that makes no sense, ``StoreError``, and what ``check``
    raises: the name then stands for what it did.
    """
    inside = incoming.contents()
    called = plain(inside.manifest.name if name is None else name)
    held = incoming.variants()
    chosen = inside.chosen(held if variants is None else variants)
    refuse_missing(incoming, chosen, held)
    signature = incoming.signature()
    (admit or gate(store=store.folder))(inside, signature)
    with store.writing("The install", waiting):
        before = installed.read(store.folder, called)
        refuse_downgrade(called, inside, before, allow_downgrade)
        _bring(store, incoming, inside, chosen, signature, progress)
        path = store.bundle(inside.id)
        check(path)
        after = following(before, inside)
        if after != before:
            point(store, called, after)
        there = open_bundle(path, verify="sizes")
    return Installed(called, inside.id, path, after.previous, tuple(each.id for each in there.manifest.variants))


def refuse_downgrade(name: str, inside: Contents, before: Reference | None, allowed: bool) -> None:
    """Raise ``TrustError`` for a sequence below the highest that the name stood for, unless that is ``allowed``."""
    sequence = inside.manifest.sequence
    if before is not None and sequence < before.highest and inside.id != before.current and not allowed:
        raise TrustError(
            f"{name} has been at sequence {before.highest} here, and this bundle is {sequence}: a downgrade.",
            hint="Take a newer one, edgepack rollback for the one before, or --allow-downgrade if you mean it.",
        )


def following(before: Reference | None, inside: Contents) -> Reference:
    """Return what a name stands for after a bundle has taken it."""
    sequence = inside.manifest.sequence
    if before is None:
        return Reference(inside.id, None, sequence)
    previous = before.previous if before.current == inside.id else before.current
    return Reference(inside.id, previous, max(before.highest, sequence))


def point(store: Store, name: str, reference: Reference) -> None:
    """Let a name stand for a bundle. Raises ``OSError``, and ``StoreError`` where it does, perhaps not on the disk."""
    try:
        store.point(name, reference)
    except OSError as error:
        if installed.read(store.folder, name) != reference:
            raise
        raise StoreError(
            f"{name} stands for sha256:{reference.current} now, and the system refused to say that the disk holds it: "
            f"{error.strerror}.",
            hint=f"See whether it does: edgepack verify {name}",
        ) from None


def _bring(
    store: Store,
    incoming: Incoming,
    inside: Contents,
    chosen: tuple[str, ...],
    signature: bytes | None,
    progress: Progress | None,
) -> None:
    """Have the bundle in the store with the chosen variants, whole."""
    path, staged = store.bundle(inside.id), store.staging / inside.id
    there = _whole(path)
    if there is None:
        receive(incoming, inside.files(chosen), staged, known_files(store), progress)
        _complete(staged / "tree", inside, signature)
        if os.path.lexists(path):  # damaged, and what was sound in it is in the new one
            _away(staged / "damaged")
            os.rename(path, staged / "damaged")
        os.rename(staged / "tree", path)
        flush(path.parent)
    else:
        lacking = [id for id in chosen if id not in there]
        wanted = {f"{VARIANTS}/{id}/" for id in lacking}
        files = {name: file for name, file in inside.files(lacking).items() if name.startswith(tuple(wanted))}
        receive(incoming, files, staged, known_files(store), progress)
        settle(staged / "tree")
        for id in lacking:
            (path / VARIANTS).mkdir(exist_ok=True)
            os.rename(staged / "tree" / VARIANTS / id, path / VARIANTS / id)
            flush(path / VARIANTS)
        if signature is not None:
            _sign(path, signature)
    _away(staged)


def _whole(path: Path) -> set[str] | None:
    """Return the variants of a bundle of the store whose bytes are all right; None where it is damaged or not there."""
    if not os.path.lexists(path):
        return None
    try:
        bundle = open_bundle(path, id=path.name)
    except BundleError:
        return None
    return {variant.id for variant in bundle.manifest.variants}


def _complete(tree: Path, inside: Contents, signature: bytes | None) -> None:
    """Add what no manifest lists, and have all of it on the disk."""
    extra = inside.manifests() | ({} if signature is None else {SIGNATURE: signature})
    for name, data in extra.items():
        place = tree / name
        place.unlink(missing_ok=True)
        write_file(place, [data])
        flush(place)
    settle(tree)
    open_bundle(tree, verify="sizes")


def _sign(path: Path, signature: bytes) -> None:
    """Put a signature beside the manifest of an installed bundle, which may have been signed anew."""
    place = path / SIGNATURE
    if not place.is_file() or place.read_bytes() != signature:
        replace_file(place, signature)


def _away(folder: Path) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)
