"""Sources: what a build is asked to convert, and the folder that it becomes.

A name is the demo model, a folder, a GGUF file or a part of one, an alias of the catalogue, or a repository of the hub.
``find`` fetches its config.json and no more, so that a model that cannot be built is refused before gigabytes are on
their way; ``fetch_text`` adds everything but the weights, and ``fetch_weights`` the weights. A folder needs neither,
and a file is unfolded into one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shutil import rmtree
from typing import Any
from weakref import finalize

from edgepack import extras
from edgepack.bundle.manifest import File
from edgepack.errors import SourceError
from edgepack_packager.checkpoint import CONFIG, Checkpoint, open_checkpoint
from edgepack_packager.checkpoint.gguf.file import GgufCheckpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.progress import Progress
from edgepack_packager.source import catalog, gguf, place, signed, space
from edgepack_packager.source.space import Need

__all__ = ["DEMO", "Need", "Source", "described", "fetch_text", "fetch_weights", "find", "open_weights", "read_config"]

DEMO = "demo"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ADDRESS = re.compile(r"https?://[^/]+/([\w.-]+/[\w.-]+)(/.*)?", re.ASCII)
_LISTED = "`edgepack models` lists the catalogue; a repository of the hub is named OWNER/NAME, a folder by its path."


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Source:
    """A folder in Hugging Face layout, the name that its bundle takes, and where it came from.

    ``revision`` is the 40-hex commit of ``repository``; both are None for a folder whose path does not name them.
    ``given`` says that the folder was given as one, so that nothing is fetched into it. ``file`` is a GGUF file that
    holds the weights, or a part of one, and ``notes`` what is to be known of it, a sentence each; its folder goes when
    this does.
    """

    folder: Path
    name: str
    repository: str | None = None
    revision: str | None = None
    given: bool = False
    file: Path | None = None
    notes: tuple[str, ...] = ()


def find(model: str) -> Source:
    """Return the source of a name, with its config.json in its folder: from the hub, nothing else is fetched.

    A folder with a config.json is taken before an alias or a repository of the same name. Raises ``SourceError`` for a
    name that stands for nothing, a gated repository, or a hub that cannot be reached for what the cache lacks.
    """
    if model == DEMO:
        return Source(Path(str(files("edgepack_packager"))) / "demo_model", DEMO)
    folder = _folder(model)
    if _is_folder(model):
        if found := place.cached(folder):
            return Source(folder, found.name, found.repository, found.revision, given=True)
        return Source(folder, folder.resolve().name, given=True)
    if folder.suffix.lower() == gguf.SUFFIX and not folder.is_dir():
        return _unfolded(folder)
    if folder.is_file():
        raise place.no_folder(folder)
    name, at, revision = model.partition("@")
    if at and not revision:
        raise SourceError(f"{model} names no revision after the @.", hint="Give a branch, a tag or a commit.")
    if entry := catalog.find(name):
        return _pinned(entry.repository, revision or entry.revision, entry.alias)
    if folder.is_dir():
        if part := gguf.split.only(folder):
            return _unfolded(part)
        raise place.no_checkpoint(folder)
    if _REPOSITORY.fullmatch(name) and not name.startswith("."):
        return _pinned(name, revision or None, name.partition("/")[2])
    if address := _ADDRESS.fullmatch(model):
        raise SourceError(f"{model!r} is an address, not a name.", hint=f"Give the repository: {address[1]}")
    raise SourceError(
        f"{model!r} is neither a folder nor a model of the catalogue.", hint=catalog.suggestion(name) or _LISTED
    )


def carried(model: str) -> str | None:
    """Return the repository whose config.json the catalogue carries for a name; None where ``read_config`` asks others:
    for a folder, the demo, another model, and a revision."""
    found = None if _is_folder(model) else catalog.carried(model)
    return None if found is None else found[0].repository


def read_config(model: str) -> dict[str, Any]:
    """Return the config.json of a name: of a catalogued one what the catalogue carries, without asking the hub.

    Raises as ``find``, and ``SourceError`` where it is not a JSON object.
    """
    if not _is_folder(model) and (found := catalog.carried(model)):
        return dict(found[1].config)
    source = find(model)  # whose folder may go when it does
    return read_object(source.folder / CONFIG)


def fetch_text(source: Source) -> None:
    """Fetch everything but the weights: the tokenizer, the template, the defaults, the card and the licence.

    Raises ``SourceError`` where the repository has no tokenizer.json, or as ``find``.
    """
    if source.repository and source.revision and not source.given:
        from edgepack_packager.source import hub

        hub.fetch_text(source.repository, source.revision, source.folder)


def weights_size(source: Source) -> int | None:
    """Return the bytes of the weight files that are yet to be fetched or in the cache; None of a folder's own files.

    Raises as ``fetch_weights``.
    """
    if source.given or not source.repository or not source.revision:
        return None
    from edgepack_packager.source import hub

    return hub.weights_size(source.repository, source.revision, source.folder)


def fetch_weights(source: Source, progress: Progress, *others: Need) -> None:
    """Fetch the weights, once there is room for them and for the ``others`` that are to be written after them.

    Raises ``BuildError`` where a disk is too small, ``SourceError`` where the repository has no safetensors weights, or
    as ``find``. What was fetched whole is kept in the client's cache and not fetched again.
    """
    if source.repository and source.revision and not source.given:
        from edgepack_packager.source import hub

        hub.fetch_weights(source.repository, source.revision, source.folder, progress, others)
    else:
        space.check(others)


def open_weights(source: Source) -> Checkpoint | GgufCheckpoint:
    """Open the weights of a source, which are there. Raises ``SourceError`` where they are damaged."""
    if source.file is None:
        return open_checkpoint(source.folder)
    return GgufCheckpoint(gguf.open_file(source.file), read_object(source.folder / CONFIG))


def described(source: Source, weights: Checkpoint | GgufCheckpoint) -> list[Path]:
    """Return the files that say what the model is: its weights, and a config.json that is not made of them."""
    return [*([] if source.file else [source.folder / CONFIG]), *weights.files]


def refuse_unsigned(source: Source, key: str | None) -> None:
    """Refuse a source that a key did not sign, before its weights are fetched; nothing without a key.

    Raises ``SourceError``, and ``UsageError`` where the file ``key`` is no public key.
    """
    if key is not None:
        signed.by(_root(source), key)


def as_signed(source: Source, files: Sequence[File], key: str | None) -> list[str]:
    """Return a sentence of the source's signature, none where it has none, once ``files`` are what was signed.

    Raises ``SourceError`` where they are not, and as ``refuse_unsigned``.
    """
    return signed.compared(_root(source), files, key, whole=source.file is None)


def _root(source: Source) -> Path:
    """Return the folder in which a signature would lie."""
    return source.folder if source.file is None else source.file.parent


def _unfolded(path: Path) -> Source:
    folder, notes = gguf.unfold(path)
    found = place.cached(path.parent)
    repository, revision = (found.repository, found.revision) if found else (None, None)
    source = Source(folder, gguf.split.title(path), repository, revision, given=True, file=path, notes=tuple(notes))
    finalize(source, rmtree, folder, ignore_errors=True)
    return source


def _folder(model: str) -> Path:
    with suppress(RuntimeError):  # no user has that name
        return Path(model).expanduser()
    return Path(model)


def _is_folder(model: str) -> bool:
    """Say whether a name is that of a folder in Hugging Face layout, which is taken before any other meaning."""
    return (_folder(model) / CONFIG).is_file()


def _pinned(repository: str, revision: str | None, name: str) -> Source:
    with extras.needed(f"Fetching {repository}", "build"):
        from edgepack_packager.source import hub
    commit, folder = hub.pin(repository, revision)
    return Source(folder, name, repository, commit)
