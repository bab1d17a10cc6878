"""What a bundle records of its build: the source and the recipe that give it again.

A bundle names what it does not carry: a folder, adapters, texts of the builder's own. Those are given again, and
compared with the digests that were recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import Bundle
from edgepack.bundle.manifest import File, Manifest
from edgepack.bundle.receipt import BUILT_IN as HELD_OUT
from edgepack.errors import BuildError
from edgepack.runtime import KvCache
from edgepack_packager import adapters, calibration, seal, source
from edgepack_packager.allocation import table
from edgepack_packager.calibration.text import AUTO, BUILT_IN
from edgepack_packager.progress import Progress
from edgepack_packager.recipe import Quality, Recipe
from edgepack_packager.source import Source, catalog
from edgepack_packager.targets import SUFFIXES

_ADAPTERS: Final = "adapters/"


@dataclass(frozen=True, slots=True)
class Given:
    """What the builder gives again: the source's folder or GGUF file, the adapters in their order, the texts that were
    calibrated with and held out, and the draft model; None for what the bundle's record finds by itself."""

    source: str | None = None
    adapters: tuple[str, ...] = ()
    calibrate: str | None = None
    receipt: str | None = None
    draft: str | None = None


class Recorded(msgspec.Struct, frozen=True):
    """``producer.recipe`` of a manifest."""

    targets: tuple[str, ...]
    quants: tuple[str, ...]
    context: int
    unproven: int = 0
    kv_cache: KvCache = "f32"
    max_kl: str | None = None
    no_chat: int = 0
    draft: int = 0
    exporter: str | None = None
    recipe: int = 0
    thinks: int = 0
    licence: int = 0
    adapters: tuple[str, ...] = ()
    quality: Quality | None = None
    calibrate: str | None = None
    calibrate_sha256: str | None = None
    receipt: str | None = None


def cannot(manifest: Manifest, why: str, hint: str) -> BuildError:
    """Return the error of a bundle that its record does not give again: ``why`` is the end of a sentence."""
    return BuildError(f"{manifest.name} cannot be built again: {why}.", hint=hint)


def source_of(manifest: Manifest, given: str | None, progress: Progress) -> Source:
    """Return what a bundle was made of: the repository at its revision, or a folder whose files have the recorded
    digests. A folder without a repository is the ``given`` one, or lies here under its name.

    Raises ``BuildError`` where it is not here or is another, and as ``source.find``.
    """
    recorded = manifest.source
    name = given or _found(recorded)
    if name is None:
        raise cannot(
            manifest,
            f"it was made of {recorded.name}, which is in no repository, and not here",
            "Give --source the folder or the GGUF file.",
        )
    found = source.find(name)
    if found.given or found.repository is None:
        _compare_source(manifest, found, progress)
        return source.known_as(found, recorded.name, recorded.repository, recorded.revision)
    return found


def recipe_of(bundle: Bundle, manifest: Manifest, given: Given, scratch: Path) -> Recipe:
    """Return the recipe that a bundle records, with what was ``given`` for what it only names.

    ``manifest`` is the bundle's whole. Files that the bundle carries, and texts under their recorded names, are written
    into ``scratch``. Raises ``BuildError`` where something is missing, or is not what was recorded.
    """
    recorded = recipe_in(manifest)
    receipt = recorded.receipt
    if receipt not in (None, HELD_OUT):
        receipt = _text(manifest, receipt, given.receipt, "--receipt", scratch)
    return replace(
        model_of(bundle, manifest, given, scratch),
        unproven=bool(recorded.unproven),
        kv_cache=recorded.kv_cache,
        max_kl=None if recorded.max_kl is None else float(recorded.max_kl),
        draft=_draft(bundle, manifest, given) if recorded.draft else None,
        calibrate=_calibration(manifest, recorded, given, scratch),
        quality=recorded.quality,
        receipt=receipt,
        table=_table(bundle, manifest, scratch) if recorded.recipe else None,
        exporter=recorded.exporter,
    )


def model_of(bundle: Bundle, manifest: Manifest, given: Given, scratch: Path) -> Recipe:
    """Return what a bundle's recipe says of the model, whichever variants are made of it; as ``recipe_of``."""
    recorded = recipe_in(manifest)
    date = manifest.chat.date if manifest.chat else None
    return Recipe(
        recorded.targets,
        recorded.quants,
        recorded.context,
        name=manifest.name,
        accept_licence=manifest.license.accepted,
        date=None if date is None else "passed" if date.policy == "passed" else date.day,
        no_chat=bool(recorded.no_chat),
        thinks=bool(recorded.thinks),
        adapters=_adapters(manifest, recorded.adapters, given.adapters),
        version=manifest.version,
        sequence=manifest.sequence,
        licence=_carried(bundle, "LICENSE", scratch) if recorded.licence else None,
    )


def recipe_in(manifest: Manifest) -> Recorded:
    """Return ``producer.recipe`` of a manifest. Raises ``BuildError`` for one that says it otherwise."""
    try:
        recorded = msgspec.convert(manifest.producer.recipe, Recorded)
        float(recorded.max_kl or 0)
    except (msgspec.ValidationError, ValueError) as error:
        raise cannot(manifest, f"its recipe is recorded in a way unknown here ({error})", "Build it anew.") from None
    return recorded


def _found(recorded: manifests.Source) -> str | None:
    """Return the name by which ``source.find`` finds a recorded source, None where that is not known or not here."""
    if recorded.repository is not None:
        if any(_is_gguf(file) for file in recorded.files):
            return None  # a file of a repository is given, and not fetched
        entry = catalog.find(recorded.name)
        alias = entry is not None and entry.repository == recorded.repository
        return f"{recorded.name if alias else recorded.repository}@{recorded.revision}"
    if recorded.name == source.DEMO:
        return source.DEMO
    names = [recorded.name, *(file.path for file in recorded.files if _is_gguf(file))]
    here = [Path(name) for name in names if Path(name).name == name]
    return next((str(path) for path in here if (path / "config.json").is_file() or path.is_file()), None)


def _is_gguf(file: File) -> bool:
    return file.path.lower().endswith(".gguf")


def _compare_source(manifest: Manifest, found: Source, progress: Progress) -> None:
    recorded = [file for file in manifest.source.files if not file.path.startswith(_ADAPTERS)]
    with source.open_weights(found) as weights:
        paths = source.described(found, weights)
    progress.stage(f"Comparing {found.name} with what was recorded", len(paths))
    files = []
    for path in paths:
        files.append(seal.file_of(path, path.parent))
        progress.advance()
    _compare(manifest, recorded, files, str(found.file or found.folder), "Give --source what the bundle was made of.")


def _compare(manifest: Manifest, recorded: Sequence[File], files: Sequence[File], place: str, hint: str) -> None:
    before, now = ({file.path: file.sha256 for file in each} for each in (recorded, files))
    other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if other:
        raise cannot(manifest, f"{other[0]} of {place} is not the file that it was made of", hint)


def _adapters(manifest: Manifest, recorded: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Return the adapters, once their names, scales and files are those that were recorded."""
    asked = tuple(given or recorded)
    hint = f"Give, in this order: {' '.join(f'--adapter FOLDER/{name}' for name in recorded)}"
    named = [adapters.asked(text) for text in asked]
    if missing := next((each for each in named if not each.folder.is_dir()), None):
        raise cannot(manifest, f"the adapter {missing.folder} is not here", hint)
    if [each.name for each in named] != [*recorded]:
        raise cannot(manifest, f"its adapters were {', '.join(recorded) or 'none'}", hint if recorded else "Give none.")
    files = [file for file in manifest.source.files if file.path.startswith(_ADAPTERS)]
    _compare(manifest, files, seal.files_of_adapters(named), "the adapters", hint)
    return asked


def _calibration(manifest: Manifest, recorded: Recorded, given: Given, scratch: Path) -> str | None:
    """Return the text to calibrate with; None where the recipe's other parts come to the built-in one themselves."""
    if recorded.calibrate in (None, BUILT_IN, AUTO):
        asked = any(variant.id.endswith(SUFFIXES["calibrated"]) for variant in manifest.variants)
        return recorded.calibrate if asked or recorded.calibrate == AUTO else None
    text = _text(manifest, recorded.calibrate, given.calibrate, "--calibrate", scratch)
    if calibration.text.read(text).sha256 != recorded.calibrate_sha256:
        raise cannot(
            manifest, f"{given.calibrate} is not the text that it was calibrated with", "Give --calibrate that text."
        )
    return text


def _text(manifest: Manifest, name: str, given: str | None, option: str, scratch: Path) -> str:
    """Return a given text's file under the name that was recorded."""
    if name in ("", ".", "..") or not name.isprintable() or Path(name).name != name:
        raise cannot(manifest, f"its recipe names a text {name!r}, which is no name of a file", "Build it anew.")
    if given is None:
        raise cannot(
            manifest, f"its recipe names the text {name}, which is not in the bundle", f"Give it: {option} FILE"
        )
    try:
        data = Path(given).read_bytes()
    except OSError as error:
        raise cannot(manifest, f"{given} cannot be read: {error.strerror}", f"Give {option} the text.") from None
    folder = scratch / option.lstrip("-")
    folder.mkdir(exist_ok=True)
    return _written(folder, name, data)


def _draft(bundle: Bundle, manifest: Manifest, given: Given) -> str:
    name = given.draft or (_found(bundle.draft.manifest.source) if bundle.draft else None)
    if name is None:
        raise cannot(manifest, "its draft model is in no repository, and not here", "Give it: --draft FOLDER")
    return name


def _table(bundle: Bundle, manifest: Manifest, scratch: Path) -> str:
    """Return a recipe of those variants whose forms were given, not chosen."""
    ids = [variant.id for variant in manifest.variants if variant.quantization.asked == "recipe"]
    whole = table.read(Path(_carried(bundle, table.FILE, scratch)))
    given = [entry for entry in whole.entries if any(id == entry.id or id.startswith(f"{entry.id}-kv") for id in ids)]
    sections = [
        table.Section(entry.id, "", (), [table.Line(name, form, "") for name, form in entry.lines.items()])
        for entry in given
    ]
    return _written(scratch, table.FILE, table.write(sections, None).encode())


def _carried(bundle: Bundle, name: str, scratch: Path) -> str:
    return _written(scratch, name, bundle.read(name))


def _written(scratch: Path, name: str, data: bytes) -> str:
    path = scratch / name
    path.write_bytes(data)
    return str(path)
