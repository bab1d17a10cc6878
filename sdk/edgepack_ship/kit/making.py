"""A kit is made: the bundle packed, its wheels gathered, and the script that puts both on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

from edgepack.bundle import work
from edgepack.bundle.files import Bundle, Progress, open_bundle
from edgepack.errors import UsageError
from edgepack.text import tables
from edgepack.trust import admitting, vouching
from edgepack.trust.admitting import POLICY
from edgepack.trust.files import read
from edgepack.trust.policy import MAX_POLICY
from edgepack_ship.incoming import Folder
from edgepack_ship.kit.platforms import Platform
from edgepack_ship.kit.script import write
from edgepack_ship.kit.wheelhouse import gather, lock
from edgepack_ship.packing import pack
from edgepack_ship.store.place import plain


@dataclass(frozen=True, slots=True)
class Kit:
    """A kit: its folder, what it installs the bundle as, the bundle's id, its variants, the packages, and all bytes."""

    path: Path
    name: str
    id: str
    variants: tuple[str, ...]
    packages: int
    size: int


def make(
    bundle: Path,
    out: Path,
    platform: Platform,
    python: str,
    *,
    name: str | None = None,
    variants: Iterable[str] | None = None,
    extras: Iterable[str] = (),
    policy: Path | None = None,
    wheel: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> Kit:
    """Make a kit of a bundle, or of the named ones of its variants, for a device.

    ``extras`` of edgepack come along beside those that the bundle needs there, ``policy`` is what the device admits,
    ``wheel`` is edgepack's own. Raises ``BundleError``, ``TrustError`` for a bundle that the policy does not admit,
    ``UsageError``, ``BuildError`` and ``OutputExistsError``.
    """
    opened = open_bundle(bundle, verify="sizes")
    called = plain(opened.manifest.name if name is None else name)
    kept = tuple(variant.id for variant in opened.manifest.variants) if variants is None else tuple(variants)
    needed = _extras(opened, kept, extras)
    rules = None if policy is None else _rules(policy, opened)
    with work.folder(out, what="The kit") as scratch:
        kit = scratch / "kit"
        wheels = kit / "wheels"
        wheels.mkdir(parents=True)
        found = gather(needed, platform, python, wheels, wheel, said)
        with Folder(opened.path) as incoming:
            packed = pack(incoming, kit / f"{called}.edgepack.tar", kept, progress=progress)
        if rules is not None:
            (kit / POLICY).write_bytes(rules)
        write(kit, called, opened.id, platform, python, lock(found))
        work.publish(kit, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Kit(out, called, opened.id, packed.variants, len(found), size)


def _extras(bundle: Bundle, variants: Iterable[str], more: Iterable[str]) -> list[str]:
    """Return the extras of edgepack that the variants, and the draft, need on a device: engines, the commands and the
    store, and the tokenizer's library where the compiled tokenizer asks for it.

    Raises ``UsageError`` for an extra that there is not, and where no variant has a self-test: no device could tell
    whether it answers as it should.
    """
    held = [bundle.variant(id) for id in variants]
    if not any(each.self_test or each.vector_test for each in held):
        raise UsageError(
            f"{bundle.path.name} has no variant with a self-test, by which a device knows that it answers.",
            hint="Build it without --unproven.",
        )
    drafts = () if bundle.draft is None else bundle.draft.manifest.variants
    front = tables.decode(bundle.read(tables.FILE)).front
    tokenizer = ["tokenizers"] if front is None else []
    wanted = {*(each.runtime for each in (*held, *drafts)), "cli", "ship", *tokenizer, *more}
    known = metadata("edgepack").get_all("Provides-Extra", ())
    if unknown := sorted(wanted.difference(known)):
        raise UsageError(f"edgepack has no extra {unknown[0]!r}.", hint=f"It has: {', '.join(sorted(known))}.")
    return sorted(wanted)


def _rules(path: Path, bundle: Bundle) -> bytes:
    """Return the bytes of a policy that admits the bundle. Raises ``TrustError``, and ``UsageError`` for one that names
    a key by a file, which no device has."""
    rules = admitting.rules(path)
    if filed := next((key.name for key in rules.policy.key if key.file is not None), None):
        raise UsageError(
            f"{path} names the key {filed} by a file, which is not on the device.", hint="Put its text there, as pem."
        )
    admitting.admit(rules, vouching.whole(bundle), bundle.signature())
    return read(path, MAX_POLICY)
