"""The folder in which a bundle grows. It has the bundle's name only when it is complete, and is gone otherwise."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from edgepack.bundle.files import MANIFEST
from edgepack.bundle.packed import is_packed
from edgepack.errors import BuildError, EdgepackError, OutputExistsError

_WORK = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
_TRIES = 100  # of a hundredth of a second


@contextmanager
def folder(out: Path, force: bool = False, what: str = "The build") -> Iterator[Path]:
    """Yield an empty folder beside ``out``, and remove it when the block ends, however it ends.

    Who was killed cannot clean up: the folder is removed by the next that writes beside it, whatever that is named,
    which tells it from one that still grows by the lock. Raises ``OutputExistsError`` where ``out`` exists, and
    ``BuildError`` as ``refusals`` does.
    """
    refuse_existing(out, force)
    # Named before it is made, so that an interrupt at any moment finds it.
    work = out.parent / f".{out.name}.{token_hex(8)}.partial"
    with refusals(out, what), ExitStack() as locks:
        try:
            try:
                _make(out.parent)
                with _lock(out.parent):  # who sweeps has the same lock, and meets no folder before it has its own
                    work.mkdir(mode=0o700)
                    locks.enter_context(_lock(work))
            except OSError as error:
                raise _unwritable(out, error) from None
            yield work
        finally:
            try:
                shutil.rmtree(work, ignore_errors=True)
            finally:  # an interrupt of that leaves nothing either
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def refusals(out: Path, what: str = "The build") -> Iterator[None]:
    """Turn whatever the system refuses in the block, as a full disk does, into a ``BuildError``: ``what`` failed."""
    before = _identity(out)
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgepackError):
            raise
        raise _failed(out, error, what, sealed=_identity(out) not in (before, None)) from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a folder to this process for the block; where the system cannot lock one, or another program has it locked
    for long, go on without."""
    with ExitStack() as stack:
        with suppress(OSError):
            descriptor = _opened(folder)
            stack.callback(os.close, descriptor)
            for _ in range(_TRIES):
                with suppress(BlockingIOError):
                    _take(descriptor)
                    break
                time.sleep(0.01)
        yield


def _make(folder: Path) -> None:
    """Make a folder, and all above it, so that a loss of power cannot take it from the bundle in it."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def _unwritable(out: Path, error: OSError) -> BuildError:
    return BuildError(f"Cannot write beside {out}: {error.strerror}.", hint="Choose another --out.")


def _identity(out: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another that takes its name, None where there is none."""
    with suppress(OSError):
        found = out.stat()
        return found.st_dev, found.st_ino
    return None


def _failed(out: Path, error: OSError, what: str, sealed: bool) -> BuildError:
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if sealed:
        return BuildError(
            f"{out} is sealed, and the system refused what comes after it: {reason}.",
            hint=f"See whether the disk holds it: edgepack verify {out}",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        hint = "Free some space and repeat, or choose another place with --out."
    else:
        hint = "Nothing is sealed; the system's log may say what is wrong with the disk."
    return BuildError(f"{what} failed: {reason}.", hint=hint)


def publish(bundle: Path, out: Path, force: bool = False) -> None:
    """Flush every file of a finished bundle and give it its name in one step.

    With ``force`` an older bundle of that name makes room first, and comes back where that step fails.
    """
    for path in [*bundle.rglob("*"), bundle]:
        flush(path)
    refuse_existing(out, force)
    before = bundle.with_suffix(".before")  # it goes with the folder in which the bundle grew
    if there := out.exists():
        os.rename(out, before)
    try:
        os.rename(bundle, out)
    except BaseException:
        if there:
            os.rename(before, out)
        raise
    flush(out.parent)


def refuse_existing(out: Path, force: bool = False) -> None:
    """Raise ``OutputExistsError`` where the output exists, even as an empty folder; with ``force``, unless it is a
    bundle, packed or not.

    What a build left beside it that was killed is removed in any case.
    """
    _remove_abandoned(out.parent)
    try:
        there = out.exists() or out.is_symlink()
    except OSError as error:
        raise _unwritable(out, error) from None
    if not there:
        return
    bundle = not out.is_symlink() and ((out / MANIFEST).is_file() or is_packed(out))
    if force and not bundle:
        raise OutputExistsError(
            f"{out} is no bundle, and --force replaces nothing else.", hint="Remove it or choose another --out."
        )
    if not force:
        replaces = ", replace it with --force," if bundle else ""
        raise OutputExistsError(f"{out} exists already.", hint=f"Remove it{replaces} or choose another --out.")


def _remove_abandoned(beside: Path) -> None:
    beside = Path(os.path.realpath(beside))
    with suppress(OSError), _unless_locked(beside):
        for name in os.listdir(beside):
            if _WORK.fullmatch(name):
                # Another build's, or another user's, stays.
                with suppress(OSError), _unless_locked(beside / name):
                    shutil.rmtree(beside / name)


@contextmanager
def _unless_locked(folder: Path) -> Iterator[None]:
    """Keep a folder that is no link to this process for the block. Raises ``OSError`` where another has it."""
    descriptor = _opened(folder, follow=False)
    try:
        _take(descriptor)
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path, *, follow: bool = True) -> int:
    """Return a descriptor of a folder. Raises ``OSError``: on Windows always, which has none."""
    if sys.platform == "win32" or not hasattr(os, "O_DIRECTORY"):
        raise OSError(errno.ENOTSUP, "this system opens no folders", str(folder))
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW))


def _take(descriptor: int) -> None:
    """Lock what is open for this process. Raises ``BlockingIOError`` where another has it."""
    if sys.platform != "win32":  # where no folder is opened
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before this returns. Raises ``OSError``."""
    flags = os.O_RDONLY
    if not hasattr(os, "O_DIRECTORY"):  # Windows flushes what may be written to, and no folder
        if path.is_dir():
            return
        flags = os.O_RDWR
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
