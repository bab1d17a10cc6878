"""Build a bundle again from what it records, and say file by file whether it is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import DRAFT, MANIFEST, Bundle, open_bundle
from edgepack.bundle.manifest import Manifest
from edgepack_packager import recorded
from edgepack_packager.build import VariantsFailedError, build
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.recorded import Given


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it: the ids of both bundles, and the files that one has otherwise than the other, or alone.

    ``tools`` are those whose versions differ: the recorded one and the one here, None where it took no part.
    """

    id: str
    again: str
    differing: tuple[str, ...]
    tools: Mapping[str, tuple[str | None, str | None]]

    @property
    def same(self) -> bool:
        """Whether every byte is: the id is the digest of all."""
        return self.id == self.again


def rebuild(bundle: Bundle, given: Given, out: Path | None = None, *, progress: Progress | None = None) -> Rebuilt:
    """Build the recorded recipe from the recorded source, at ``out`` or where it is gone afterwards, and compare.

    Files are compared by their digests, those of absent variants too. Raises ``BuildError`` for what cannot be built
    again, and as ``build.build``.
    """
    progress = progress or Silent()
    whole = manifests.decode(bundle.read(MANIFEST))
    if whole.parent is not None:
        raise recorded.cannot(
            whole,
            f"it was made of the bundle sha256:{whole.parent} by leaving variants out or adding some",
            "Rebuild that one.",
        )
    with TemporaryDirectory(prefix="edgepack-") as folder:
        scratch = Path(folder)
        recipe = recorded.recipe_of(bundle, whole, given, scratch)
        origin = recorded.source_of(whole, given.source, progress)
        try:
            built = build(origin, recipe, out or scratch / f"{whole.name}.edgepack", progress=progress)
        except VariantsFailedError as error:  # as the build before may have done
            if error.built is None:
                raise
            built = error.built
        return _compared(bundle, whole, open_bundle(built.path, verify="sizes"))


def _compared(bundle: Bundle, whole: Manifest, again: Bundle) -> Rebuilt:
    before, now = dict(_digests(bundle, whole)), dict(_digests(again, again.manifest))
    tools, here = _tools(whole), _tools(again.manifest)
    return Rebuilt(
        bundle.id,
        again.id,
        tuple(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))),
        {
            name: (tools.get(name), here.get(name))
            for name in sorted(tools.keys() | here.keys())
            if tools.get(name) != here.get(name)
        },
    )


def _digests(bundle: Bundle, whole: Manifest) -> Iterator[tuple[str, str]]:
    yield MANIFEST, bundle.id
    yield from ((file.path, file.sha256) for file in whole.files)
    yield from ((f"variants/{v.id}/{file.path}", file.sha256) for v in whole.variants for file in v.files)
    if bundle.draft is not None:
        draft = manifests.decode(bundle.draft.read(MANIFEST))
        yield from ((f"{DRAFT}/{name}", digest) for name, digest in _digests(bundle.draft, draft))


def _tools(manifest: Manifest) -> dict[str, str]:
    """Return what shaped the bytes, and the engines that proved them, with their versions."""
    proofs = [variant.proof for variant in manifest.variants if variant.proof]
    engines = (proof.engine.rpartition(" ") for proof in proofs)
    return {
        "edgepack": manifest.producer.edgepack,
        **manifest.producer.packages,
        **{name: version for name, _, version in engines},
    }
