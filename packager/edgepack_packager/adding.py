"""Add variants to a model that is packed already: a new bundle of the old variants, as they are, and of proven ones.

The new ones are built from the recorded source as a bundle of their own, which must describe the same model byte for
byte; then the two become one. Nothing of the old ones is built or proven again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from edgepack.bundle import receipt as receipts
from edgepack.bundle import work
from edgepack.bundle.files import BLOCK, DRAFT, MANIFEST, VARIANTS, Bundle
from edgepack.bundle.manifest import PARENT, SEQUENCE, File, Manifest, Schema
from edgepack.bundle.receipt import BUILT_IN, Receipt
from edgepack.errors import BuildError, BundleDamagedError, UsageError
from edgepack.runtime import KvCache
from edgepack_packager import evidence, provenance, recorded, seal
from edgepack_packager.allocation import table
from edgepack_packager.build import Built, VariantsFailedError, build
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.recipe import Quality, Recipe
from edgepack_packager.recorded import Given

_OWN: Final = {receipts.FILE, table.FILE, *provenance.FILES}
"""Files that tell of a bundle's variants together: each bundle has its own."""

_THE_MODEL: Final = ("name", "source", "license", "decoder", "tokenizer", "stops", "chat", "generation", "embedding")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The variants to add, as ``Recipe`` has them, and the new bundle's version and sequence, None for the old ones."""

    targets: tuple[str, ...]
    quants: tuple[str, ...]
    kv_cache: KvCache = "f32"
    quality: Quality | None = None
    max_kl: float | None = None
    version: str | None = None
    sequence: int | None = None


def add(
    bundle: Bundle,
    wanted: Wanted,
    given: Given,
    out: Path | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Seal a bundle at ``out``, by default ``./NAME.edgepack``, that has further variants; the old one is its parent.

    Raises ``BuildError`` where the old one is not whole, or was packed otherwise than this edgepack packs it,
    ``UsageError`` for variants that it has, and as ``build.build``; ``out`` is then left as it was.
    """
    progress, old = progress or Silent(), bundle.manifest
    out = out or Path(f"{old.name}.edgepack")
    with work.folder(out, force, "The addition") as scratch:
        recipe = _recipe(bundle, wanted, given, scratch)
        origin = recorded.source_of(old, given.source, progress)
        folder = scratch / "bundle"
        try:
            new = build(origin, recipe, folder, progress=progress)
        except VariantsFailedError as error:
            failed = evidence.evidence_of_failures(out)
            evidence.replace(error.evidence, failed)
            raise VariantsFailedError(error.missed, None, failed) from None
        _refuse_other(old, new.manifest)
        receipt = _receipt(receipts.read(bundle), receipts.read(new.open()), progress)
        forms = _forms(bundle, new.open())
        for name, file in _carried(bundle, old):
            _copy(bundle.path / name, folder / name, file)
        manifest = _together(bundle, new.manifest, recipe)
        own = {receipts.FILE: receipts.encode(receipt)} if receipt else {}
        own |= {table.FILE: forms} if forms else {}
        for name, data in own.items():
            (folder / name).write_bytes(data)
        manifest, id = seal.finish(folder, provenance.listed(manifest, own), receipt)
        work.publish(folder, out, force)
    return Built(out, id, manifest)


def _recipe(bundle: Bundle, wanted: Wanted, given: Given, scratch: Path) -> Recipe:
    old = bundle.manifest
    if bundle.absent:
        raise BuildError(
            f"{bundle.path.name} lacks {', '.join(bundle.absent)} in this copy.", hint="Add to the whole bundle."
        )
    before = recorded.recipe_in(old)
    if before.exporter is not None:
        raise UsageError(f"{old.name} was exported by {before.exporter}.", hint="Build it anew with other variants.")
    recipe = replace(
        recorded.model_of(bundle, old, given, scratch),
        targets=wanted.targets,
        quants=wanted.quants,
        kv_cache=wanted.kv_cache,
        quality=wanted.quality,
        max_kl=wanted.max_kl,
        calibrate=given.calibrate,
        receipt=given.receipt or (BUILT_IN if before.receipt == BUILT_IN else None),
        version=wanted.version or old.version,
        sequence=old.sequence if wanted.sequence is None else wanted.sequence,
        present=frozenset(variant.id for variant in old.variants),
    )
    text = recipe.text(None)
    if text is not None and before.calibrate is not None and Path(text).name != before.calibrate:
        raise UsageError(
            f"{old.name} was calibrated with {before.calibrate}, and these would be with {Path(text).name}.",
            hint="Give --calibrate the same text, or build a bundle of their own.",
        )
    return recipe


def _refuse_other(old: Manifest, new: Manifest) -> None:
    """Refuse a model that is described otherwise than before: its old variants were proven against that."""
    fields = (name for name in _THE_MODEL if getattr(old, name) != getattr(new, name))
    before, now = _shared(old), _shared(new)
    shared = (name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
    calibrated = (
        "the text that calibrates"
        for digest in [old.producer.recipe.get("calibrate_sha256")]
        if digest and digest != new.producer.recipe.get("calibrate_sha256", digest)
    )
    if other := next(iter((*fields, *shared, *calibrated)), None):
        raise BuildError(
            f"{old.name} is packed otherwise now, by edgepack {new.producer.edgepack}: {other} is not what it was "
            f"when {old.producer.edgepack} packed it.",
            hint="Build a bundle with all variants anew.",
        )


def _shared(manifest: Manifest) -> dict[str, str]:
    """Return the digests of the files that all variants share, by their names."""
    files = (file for file in manifest.files if file.path not in _OWN and file.path.split("/")[0] != seal.EVIDENCE)
    return {file.path: file.sha256 for file in files}


def _carried(bundle: Bundle, old: Manifest) -> Iterator[tuple[str, File]]:
    """Yield what comes from the old bundle: its variants, their evidence, and the draft."""
    yield from ((file.path, file) for file in old.files if file.path.split("/")[0] == seal.EVIDENCE)
    yield from ((name, file) for name, file in bundle.files().items() if name.split("/")[0] in (VARIANTS, DRAFT))
    if bundle.draft is not None:
        data = bundle.draft.read(MANIFEST)
        yield f"{DRAFT}/{MANIFEST}", File(path=MANIFEST, size=len(data), sha256=bundle.draft.id)


def _copy(source: Path, target: Path, file: File) -> None:
    """Copy a file of the old bundle, and compare its digest on the way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while block := reading.read(BLOCK):
            digest.update(block)
            writing.write(block)
    if digest.hexdigest() != file.sha256:
        raise BundleDamagedError(
            f"{source} is damaged: its sha256 differs from the manifest's.", hint="Copy the bundle again."
        )


def _together(bundle: Bundle, new: Manifest, recipe: Recipe) -> Manifest:
    """Return the manifest of the old variants and the new, without the files that tell of all of them."""
    old = bundle.manifest
    features = [*old.schema.features, *new.schema.features, PARENT]
    features = [name for name in dict.fromkeys(features) if name != SEQUENCE or recipe.sequence]
    files = {file.path: file for file in (*old.files, *new.files) if file.path not in _OWN}
    return msgspec.structs.replace(
        new,
        schema=Schema(new.schema.version, features),
        producer=msgspec.structs.replace(
            new.producer,
            packages=dict(sorted((old.producer.packages | new.producer.packages).items())),
            recipe=_both(old.producer.recipe, new.producer.recipe),
        ),
        context=msgspec.structs.replace(new.context, verified=min(old.context.verified, new.context.verified)),
        files=sorted(files.values(), key=lambda file: PurePosixPath(file.path)),
        variants=[*old.variants, *new.variants],
        draft=old.draft,
        parent=bundle.id,
    )


def _both(
    old: dict[str, str | int | list[str]], new: dict[str, str | int | list[str]]
) -> dict[str, str | int | list[str]]:
    """Return two recipes as one: lists follow each other, and of other fields the new one's say more."""
    merged = old | new | {"unproven": old.get("unproven", 0)}
    for name in ("targets", "quants", "error_feedback", "notes"):
        lists = [each[name] for each in (old, new) if name in each]
        if lists:
            merged[name] = list(dict.fromkeys(item for each in lists if isinstance(each, list) for item in each))
    return merged


def _receipt(old: Receipt | None, new: Receipt | None, progress: Progress) -> Receipt | None:
    """Return the figures of all variants where the same text judged them, else of the old ones."""
    if old is None or new is None:
        return old or new
    if (old.text, old.source) != (new.text, new.source):
        progress.warn(f"The receipt keeps the old variants alone: they were judged on {old.text.tokens} other tokens.")
        return old
    return msgspec.structs.replace(old, variants=[*old.variants, *new.variants])


def _forms(old: Bundle, new: Bundle) -> bytes | None:
    """Return the recipe of the forms of both, whose beginnings, comments and the calibration's text, are the same."""
    parts = [bundle.read(table.FILE).decode() for bundle in (old, new) if _has(bundle.manifest.files, table.FILE)]
    if len(parts) < 2:
        return parts[0].encode() if parts else None
    (head, sections), (other, more) = (_split(text) for text in parts)
    if head != other:
        raise UsageError(
            f"The forms of {old.manifest.name} were chosen without the text that calibrates these.",
            hint="Build a bundle of their own.",
        )
    return f"{head}{sections}{more}".encode()


def _split(text: str) -> tuple[str, str]:
    at = text.find("\n[") + 1 or len(text)
    return text[:at], text[at:].rstrip("\n") + "\n\n"


def _has(files: Sequence[File], name: str) -> bool:
    return any(file.path == name for file in files)
