"""A bundle on disk: opened strictly, read through its manifest, and handed to an engine only when its bytes agree.

It knows folders, sizes and digests, nothing of engines or of text. The rules are those of ``docs/bundle-format.md``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edgepack.bundle import installed
from edgepack.bundle import manifest as manifest_file
from edgepack.bundle.foreign import foreign
from edgepack.bundle.manifest import File, Manifest, Variant
from edgepack.bundle.packed import is_packed
from edgepack.errors import BundleDamagedError, BundleError, BundleNotFoundError, UsageError, brief

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
"""Who vouches for the bundle: it stands beside the manifest, which cannot list it."""
VARIANTS = "variants"
DRAFT = "draft"
BLOCK = 1024 * 1024
# A manifest describes files, it does not hold them: anything larger is not one, and is not worth the memory.
MAX_MANIFEST = 8 * 1024 * 1024
# Some 200 bytes for each file.
MAX_SIGNATURE = 4 * 1024 * 1024
# What is read as a whole: of the shared files the tokenizer is the largest, some 50 bytes a token.
MAX_READ = 256 * 1024 * 1024

Progress = Callable[[str, int], None]


class Memory(Protocol):
    """What a device remembers of a bundle's files, so that it need not read them again: ``edgepack.device.unchanged``.

    ``name`` is relative to the bundle's folder, ``descriptor`` the open file.
    """

    def holds(self, name: str, sha256: str, descriptor: int) -> bool:
        """Say whether the file had this digest when it was read last, and nobody can have written to it since.

        Where that is not so the file is about to be read: it is noted how it is before.
        """
        ...

    def found(self, name: str, sha256: str) -> None:
        """Take note that the file was read, and had this digest."""
        ...


_REBUILD = "Build or copy the bundle again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle. ``id`` is the sha256 of its manifest, ``path`` its folder with every link resolved.

    ``manifest`` has the variants that are here. ``absent`` are the ids of those that it lists besides, and whose
    folders were left out of this copy. ``foreign`` are the files and folders that were passed over: see
    ``edgepack.bundle.foreign``. ``draft`` is the bundle of its draft model, None without one.
    """

    path: Path
    manifest: Manifest
    id: str
    foreign: tuple[str, ...] = ()
    draft: Bundle | None = None
    absent: tuple[str, ...] = ()

    def __repr__(self) -> str:
        held = ", ".join(variant.id for variant in self.manifest.variants) or "no variant"
        return f"<Bundle {brief(self.manifest.name)} {self.id[:12]}: {brief(held)}>"

    def read(self, name: str) -> bytes:
        """Return a listed file, checked against its sha256. ``name`` is its path relative to the bundle's folder.

        Raises ``BundleNotFoundError`` for a name that the manifest does not list and ``BundleDamagedError`` for
        bytes that differ from it.
        """
        if name == MANIFEST:
            data, digest = _read(self.path, name, MAX_MANIFEST), self.id
        elif (entry := listed(self.manifest).get(name)) is not None:
            data, digest = _read(self.path, name, min(entry.size, MAX_READ)), entry.sha256
        else:
            raise BundleNotFoundError(f"{self.path} lists no file {name!r}.", hint=_REBUILD)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged(name, "its sha256 differs from the manifest's")
        return data

    def signature(self) -> bytes | None:
        """Return its model.sig unchecked, None where it is not signed. Raises ``BundleDamagedError`` for no file."""
        return _read(self.path, SIGNATURE, MAX_SIGNATURE) if os.path.lexists(self.path / SIGNATURE) else None

    def variant(self, id: str) -> Variant:
        """Return the variant of that id. Raises ``UsageError`` where there is none here."""
        for variant in self.manifest.variants:
            if variant.id == id:
                return variant
        known = ", ".join(variant.id for variant in self.manifest.variants) or "none"
        if id in self.absent:
            raise UsageError(f"The variant {id!r} is not in this copy of {self.path.name}.", hint=f"It holds: {known}.")
        raise UsageError(f"{self.path.name} holds no variant {id!r}.", hint=f"It holds: {known}.")

    def variant_path(self, id: str) -> Path:
        """Return the folder of the variant of that id, for its engine. Raises ``UsageError`` where there is none."""
        return self.path / VARIANTS / self.variant(id).id

    def check(
        self,
        variants: Iterable[str] | None = None,
        progress: Progress | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Compare the sha256 of the shared files and of the named variants (None: all, and the draft's) with the
        manifest.

        Files are read in blocks of 1 MiB; ``progress`` gets each block's file and length in bytes. Every file is read
        unless ``memory`` vouches for it. Raises ``BundleDamagedError`` for the first file that differs.
        """
        for name, file in self._files(variants):
            with _opened(self.path, name, file.size) as descriptor:
                if memory is not None and memory.holds(name, file.sha256, descriptor):
                    continue
                digest = hashlib.sha256()
                for block in _blocks(descriptor):
                    digest.update(block)
                    if progress is not None:
                        progress(name, len(block))
                if digest.hexdigest() != file.sha256:
                    raise _damaged(name, "its sha256 differs from the manifest's")
                if memory is not None:
                    memory.found(name, file.sha256)

    def size(self, variants: Iterable[str] | None = None) -> int:
        """Return the bytes of the files that ``check`` reads for the same variants."""
        return sum(file.size for _, file in self._files(variants))

    def files(self) -> dict[str, File]:
        """Return every file of the bundle but its manifests, by its path relative to the bundle's folder."""
        return dict(self._files(None))

    def _files(self, variants: Iterable[str] | None) -> Iterator[tuple[str, File]]:
        yield from ((file.path, file) for file in self.manifest.files)
        for variant in self.manifest.variants if variants is None else [self.variant(id) for id in variants]:
            yield from ((f"{VARIANTS}/{variant.id}/{file.path}", file) for file in variant.files)
        if variants is None and self.draft is not None:
            yield from ((f"{DRAFT}/{name}", file) for name, file in self.draft._files(None))


def open_bundle(
    path: str | os.PathLike[str], *, verify: Literal["full", "sizes"] = "full", id: str | None = None
) -> Bundle:
    """Open a bundle's folder and check it against its manifest.

    ``path`` is the folder, or, where no bundle has that path, the name of one that is installed. Both levels refuse
    a missing file, an unlisted one that is not ``foreign``, anything but regular files and folders, and a wrong size;
    "full" compares every sha256 as well. A variant without a folder is not here, and all else is whole. ``id`` is the
    only bundle that may lie there ("sha256:...").
    Raises ``BundleNotFoundError``, ``BundleTooNewError``, or ``BundleDamagedError``, which names the file and what
    differs.
    """
    if verify not in ("full", "sizes"):
        raise UsageError(f"verify cannot be {verify!r}.", hint="Choose 'full' or 'sizes'.")
    folder = _folder(path)
    data = _read(folder, MANIFEST, MAX_MANIFEST)
    found = hashlib.sha256(data).hexdigest()
    check_id(folder, found, id)
    manifest = manifest_file.decode(data)
    files = listed(manifest)
    here, absent = _here(folder, manifest)
    passed_over = _check_tree(folder, files, manifest.draft is not None, absent)
    bundle = Bundle(folder, here, found, passed_over, _open_draft(folder, manifest.draft), absent)
    if verify == "full":
        bundle.check()
    return bundle


def _here(folder: Path, manifest: Manifest) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest with the variants whose folders are there, and the ids of the others."""
    absent = tuple(each.id for each in manifest.variants if not os.path.lexists(folder / VARIANTS / each.id))
    if not absent:
        return manifest, absent
    held = [each for each in manifest.variants if each.id not in absent]
    return msgspec.structs.replace(manifest, variants=held), absent


def _open_draft(folder: Path, id: str | None) -> Bundle | None:
    """Return the bundle of the draft model, which has no other, as ``open_bundle`` does with its sizes."""
    if id is None:
        return None
    try:
        draft = open_bundle(folder / DRAFT, verify="sizes")
    except BundleNotFoundError:
        raise _damaged(DRAFT, "it is missing, or no bundle") from None
    except BundleDamagedError as error:
        raise BundleDamagedError(f"In {DRAFT}/: {error.message}", hint=error.hint) from None
    if draft.id != id:
        raise _damaged(DRAFT, f"it is another bundle, sha256:{draft.id}")
    if draft.manifest.draft is not None:
        raise _damaged(DRAFT, "it has a draft of its own")
    return draft


def check_id(path: Path | str, found: str, wanted: str | None) -> None:
    """Raise ``BundleError`` for a bundle that is not the one that is wanted, ``UsageError`` where that is no id."""
    if wanted is None:
        return
    digest = re.fullmatch("(?:sha256:)?([0-9a-f]{64})", wanted) if isinstance(wanted, str) else None
    if digest is None:
        raise UsageError(f"id cannot be {wanted!r}.", hint="It is 'sha256:' and the 64 digits that verify prints.")
    if digest[1] != found:
        raise BundleError(
            f"{path} is another bundle: its id is sha256:{found}, not sha256:{digest[1]}.",
            hint="Get the one that you pinned, or pin this one once you trust it.",
        )


def listed(manifest: Manifest) -> dict[str, File]:
    """Return every file that the manifest lists, by its path relative to the bundle's folder.

    Raises ``BundleDamagedError`` where two entries name the same place or an entry names one that is not its own.
    """
    files: dict[str, File] = {}
    ids: set[str] = set()
    for variant in manifest.variants:
        if variant.id in ids:
            raise _damaged(MANIFEST, f"the variant id {variant.id!r} stands there twice")
        ids.add(variant.id)
    entries = [(file.path, file) for file in manifest.files]
    if any(name in (MANIFEST, SIGNATURE) or name.split("/")[0] == VARIANTS for name, _ in entries):
        raise _damaged(MANIFEST, f"'files' lists {MANIFEST}, {SIGNATURE} or a file below {VARIANTS}/")
    if manifest.draft is not None and any(name.split("/")[0] == DRAFT for name, _ in entries):
        raise _damaged(MANIFEST, f"'files' lists a file below {DRAFT}/, which has a manifest of its own")
    entries += [(f"{VARIANTS}/{v.id}/{file.path}", file) for v in manifest.variants for file in v.files]
    for name, file in entries:
        if name in files or "\0" in name:
            raise _damaged(MANIFEST, f"the path {name!r} is listed twice or holds a null character")
        files[name] = file
    return files


def _none(path: str | os.PathLike[str], message: str, hint: str) -> BundleNotFoundError:
    error = BundleNotFoundError(message, hint=hint)
    error.filename = os.fspath(path)
    return error


def _file(path: str | os.PathLike[str], file: Path) -> BundleNotFoundError:
    if not is_packed(file):
        return _none(path, f"{path} is a file; a bundle is a folder.", f"Name the folder of {MANIFEST}.")
    # What lies beside it under a like name is not what was meant: there is no filename to look for.
    named = shlex.quote(os.fspath(path))
    return BundleNotFoundError(
        f"{path} is a packed bundle, and engines read folders.",
        hint=f"Unpack it with: edgepack unpack {named}, or install it with: edgepack install {named}",
    )


def _folder(path: str | os.PathLike[str]) -> Path:
    try:
        folder = Path(path).resolve()
        if not os.path.lexists(folder / MANIFEST):
            folder = (installed.find(os.fspath(path)) or folder).resolve()
        if not folder.exists():
            raise _none(path, f"There is no bundle at {path}.", "Check the path.")
        if not folder.is_dir():
            raise _file(path, folder)
        if not os.path.lexists(folder / MANIFEST):
            raise _none(path, f"{path} is not a bundle: it has no {MANIFEST}.", "Make one with: edgepack build")
    except ValueError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleNotFoundError(f"There is no bundle at {path!r}: {error}.") from None
    except (OSError, RuntimeError) as error:
        # Python 3.11 and 3.12 report a loop of links as a RuntimeError.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BundleNotFoundError(f"{path} cannot be opened: {reason}.", hint="Check the path.") from None
    return folder


def _check_tree(folder: Path, files: dict[str, File], with_draft: bool, absent: tuple[str, ...]) -> tuple[str, ...]:
    """Walk the folder once, but for that of a draft: every file is listed, regular and of its size, and every listed
    file is there, but for those of variants that are absent.

    Return what is foreign.
    """
    left_out = tuple(f"{VARIANTS}/{id}/" for id in absent)
    missing = {name for name in files if not name.startswith(left_out)}
    within = {name[: end + 1] for name in files for end, letter in enumerate(name) if letter == "/"}
    passed_over = []
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.is_symlink():
                        raise _damaged(name, "it is a symbolic link, and a bundle holds none")
                    if entry.is_dir(follow_symlinks=False):
                        if with_draft and name == DRAFT:
                            continue
                        if name + "/" not in within and foreign(entry.name, True):
                            passed_over.append(name + "/")
                        else:
                            pending.append(name + "/")
                    elif name not in files and entry.is_file(follow_symlinks=False) and foreign(entry.name, False):
                        passed_over.append(name)
                    elif name == SIGNATURE:
                        _check_regular(name, entry.stat(follow_symlinks=False))
                    elif name != MANIFEST:
                        _check_entry(name, entry.stat(follow_symlinks=False), files.get(name))
                        missing.discard(name)
        except OSError as error:
            raise BundleError(f"{below or folder} cannot be read: {error.strerror}.") from None
    if missing:
        raise _damaged(min(missing), "it is missing")
    return tuple(sorted(passed_over))


def _check_entry(name: str, found: os.stat_result, file: File | None) -> None:
    if file is None:
        raise _damaged(name, "the manifest does not list it", hint="Delete it, or copy the bundle again.")
    _check_regular(name, found)
    if found.st_size != file.size:
        raise _damaged(name, f"it has {found.st_size:,} bytes where the manifest says {file.size:,}")


def _check_regular(name: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(name, "it is not a regular file")


def _read(folder: Path, name: str, limit: int) -> bytes:
    data = bytearray()
    with _opened(folder, name, None) as descriptor:
        for block in _blocks(descriptor):
            data += block
            if len(data) > limit:
                raise _damaged(name, f"it has more than {limit:,} bytes")
    return bytes(data)


def _blocks(descriptor: int) -> Iterator[bytes]:
    while block := os.read(descriptor, BLOCK):
        yield block


@contextmanager
def _opened(folder: Path, name: str, size: int | None) -> Iterator[int]:
    """Yield a regular file's descriptor; never through a link at its end, never waiting for a pipe's other side."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(folder / name, flags)
    except FileNotFoundError:
        raise _damaged(name, "it is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _damaged(name, "it is a symbolic link, and a bundle holds none") from None
        raise BundleError(f"{name} cannot be read: {error.strerror}.", hint="Check its permissions.") from None
    try:
        try:
            found = os.fstat(descriptor)
            _check_regular(name, found)
            if size is not None and found.st_size != size:
                raise _damaged(name, f"it has {found.st_size:,} bytes where the manifest says {size:,}")
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}.") from None


def _damaged(name: str, what: str, *, hint: str = _REBUILD) -> BundleDamagedError:
    return BundleDamagedError(f"{name} of the bundle is damaged: {what}.", hint=hint)
