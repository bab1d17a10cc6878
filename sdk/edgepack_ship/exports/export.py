"""What all exports share: which variant goes out, its files checked while they are copied, the folder whole or not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from edgepack import extras
from edgepack.bundle import work
from edgepack.bundle.files import VARIANTS, Bundle, Progress, listed, open_bundle
from edgepack.bundle.manifest import Manifest, Variant
from edgepack.device.limits import context_limit
from edgepack.device.planning import DEFAULT_CONTEXT
from edgepack.errors import BundleDamagedError, UsageError
from edgepack_ship.reading import blocks_of
from edgepack_ship.writing import checked, write_file

GROUP = "edgepack.exports"
RECORD = "edgepack-export.json"
"""What an export says of itself; it tells a folder that ``--force`` may replace."""
CARD = "README.md"
GGUF = "model.gguf"
TEXT_SIDE: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip
"""What Hugging Face's layout has beside the weights, of what a bundle holds once for all its variants."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported, and to which system.

    ``asked`` is the id of the variant that was asked for, ``source`` the model that the bundle was built from, as a
    build names it, None where nothing was said; ``adapters`` are the folders of what was merged into it.
    ``progress`` gets the name and the length in bytes of each block that is copied.
    """

    bundle: Bundle
    system: str
    asked: str | None = None
    source: str | None = None
    adapters: tuple[Path, ...] = ()
    progress: Progress | None = None

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def name(self) -> str:
        """The model's name, of letters, digits, dots, dashes and underlines: what files and commands can be called."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.manifest.name).strip("-.") or "model"

    @property
    def context(self) -> int:
        """The tokens of context that the system is told to use: what edgepack itself takes by default."""
        return min(context_limit(self.manifest)[0], DEFAULT_CONTEXT)

    def variant(self, *targets: str) -> Variant:
        """Return the variant that goes out: the one that was asked for, or of the first of the targets that the bundle
        has the one of the fewest bits, a proven one before others. Raises ``UsageError`` where there is none, and where
        a source was named, which a variant does not need."""
        if self.source is not None or self.adapters:
            raise UsageError(
                f"{self.system} gets a variant, which the bundle holds.", hint="Leave --source and --adapter out."
            )
        if self.asked is not None:
            variant = self.bundle.variant(self.asked)
            if variant.target not in targets:
                raise UsageError(f"{self.system} takes no variant of {variant.target}.", hint=self._held(targets))
            return variant
        held = [variant for variant in self.manifest.variants if variant.target in targets]
        if not held:
            raise UsageError(
                f"{self.manifest.name} has no variant for {self.system}, which takes {' or '.join(targets)}.",
                hint=self._held(targets),
            )
        return min(held, key=lambda each: (targets.index(each.target), each.proof is None, each.quantization.bits))

    def _held(self, targets: Iterable[str]) -> str:
        held = ", ".join(variant.id for variant in self.manifest.variants) or "none"
        absent = f" Not in this copy: {', '.join(self.bundle.absent)}." if self.bundle.absent else ""
        return f"It holds: {held}.{absent} A build makes one with --target {next(iter(targets))}."

    def refuse_embedding(self) -> None:
        """Raise ``UsageError`` for a model that embeds, where the system has no form for one."""
        if self.manifest.embedding is not None:
            raise UsageError(
                f"{self.manifest.name} makes vectors of texts, and {self.system} takes models that write.",
                hint="Use it with edgepack embed, or export it to llamacpp.",
            )

    def variant_files(self, variant: Variant) -> dict[str, str]:
        """Return the files of a variant, by their paths in the bundle: each with its path in the variant's folder."""
        return {f"{VARIANTS}/{variant.id}/{file.path}": file.path for file in variant.files}

    def shared(self, *names: str) -> dict[str, str]:
        """Return those of the named shared files that the bundle has, each with its path."""
        return {name: name for name in names if name in listed(self.manifest)}

    def hub_folder(self, variant: Variant) -> dict[str, str]:
        """Return a variant, the text side that it lacks, the licence and the model card, each with its path beside the
        weights, as in a repository of the hub."""
        own = self.variant_files(variant)
        missing = [name for name in TEXT_SIDE if name not in own.values()]
        return {**own, **self.shared(*missing, *self.manifest.license.files, CARD)}

    def json_of(self, variant: Variant, name: str) -> Mapping[str, object]:
        """Return a JSON object of a variant, of the bundle where the variant has none, or an empty one. Raises
        ``BundleDamagedError`` for what is no JSON."""
        own = f"{VARIANTS}/{variant.id}/{name}"
        known = own if any(file.path == name for file in variant.files) else next(iter(self.shared(name)), None)
        if known is None:
            return {}
        try:
            found = json.loads(self.bundle.read(known))
        except (ValueError, RecursionError):
            raise BundleDamagedError(f"{known} of the bundle is no JSON.", hint="Build the bundle again.") from None
        return found if isinstance(found, dict) else {}

    def copy(self, files: Mapping[str, str], folder: Path) -> None:
        """Copy files of the bundle, by their paths in it, to paths in a folder. Raises ``BundleDamagedError`` where one
        is not what the manifest says."""
        known = listed(self.manifest)
        for name, place in files.items():
            blocks = checked(blocks_of(self.bundle.path / name), name, known[name], self.progress)
            write_file(folder / place, blocks)

    def size(self, files: Mapping[str, str]) -> int:
        """Return the bytes of files of the bundle."""
        known = listed(self.manifest)
        return sum(known[name].size for name in files)


class Result(Protocol):
    """What a system's ``write`` returns, which may be of another package: see ``Made``."""

    @property
    def variant(self) -> str | None: ...

    @property
    def differs(self) -> tuple[str, ...]: ...

    @property
    def use(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Made:
    """What a system's ``write`` made: of which variant (None: of the source), what the system does otherwise than
    edgepack, a sentence each, and the commands that use it, as they are typed in its folder."""

    variant: str | None
    differs: tuple[str, ...] = ()
    use: tuple[str, ...] = ()


Write = Callable[[Export, Path], Result]
"""Writes an export into a folder that exists and is empty."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export: its folder and its bytes, and what ``Made`` says."""

    path: Path
    system: str
    id: str
    variant: str | None
    size: int
    differs: tuple[str, ...]
    use: tuple[str, ...]


def systems() -> list[str]:
    """Return the names of all systems that are registered, sorted."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def export(
    bundle: Path,
    system: str,
    out: Path,
    *,
    variant: str | None = None,
    source: str | None = None,
    adapters: Iterable[Path] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle in the form of another system: a new folder at ``out``, whole or not at all.

    Raises ``UsageError`` for a system that is not known and for what it does not take, ``BundleError``,
    ``OutputExistsError`` unless ``force`` replaces an earlier export, and ``BuildError``.
    """
    write = _find(system)
    asked = Export(open_bundle(bundle, verify="sizes"), system, variant, source, tuple(adapters), progress)
    with work.folder(out, force, "The export", RECORD) as scratch:
        folder = scratch / "export"
        folder.mkdir()
        made = write(asked, folder)
        write_text(folder / RECORD, as_json(_record(asked, made)))
        work.publish(folder, out, force, RECORD)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(out, system, asked.bundle.id, made.variant, size, made.differs, made.use)


def _find(system: str) -> Write:
    for entry in entry_points(group=GROUP, name=system):
        with extras.needed(f"Exporting to {system}", *entry.extras):
            write: Write = entry.load()
        return write
    raise UsageError(f"No system is called {system!r}.", hint=f"There are: {', '.join(systems())}.")


def _record(asked: Export, made: Result) -> dict[str, object]:
    manifest = asked.manifest
    return {
        "system": asked.system,
        "bundle": asked.bundle.id,
        "name": manifest.name,
        "version": manifest.version,
        "variant": made.variant,
        "licence": manifest.license.id,
        "differs": list(made.differs),
        "use": list(made.use),
    }


def write_text(path: Path, text: str) -> None:
    """Write a new file in UTF-8, with the line ends that the text has."""
    write_file(path, [text.encode()])


def as_json(value: object) -> str:
    """Return a value as JSON for people and programs: two spaces, letters as they are, a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def licence(asked: Export) -> str:
    """Return the terms that travel with the model: the texts of the licence's files, or its name where it has none."""
    texts = [asked.bundle.read(name).decode("utf-8", "replace").strip() for name in asked.manifest.license.files]
    named = asked.manifest.license
    return "\n\n".join(texts) or " ".join(filter(None, (named.name or named.id, named.url)))
