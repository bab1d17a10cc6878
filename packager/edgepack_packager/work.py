"""The folder in which a bundle grows. It has the bundle's name only when it is complete, and is gone otherwise."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from edgepack.errors import BuildError, EdgepackError, OutputExistsError

_LOCK = ".building"
_WORK = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
_MOMENT = 60.0  # seconds


@contextmanager
def folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``out``, and remove it when the block ends, however it ends.

    A build that was killed cannot clean up: its folder is removed by the next build that writes beside it, whatever
    that is named, which tells it from one that still runs by the lock. Raises ``OutputExistsError`` where ``out``
    exists, and ``BuildError`` for whatever the system refuses in the block, as a full disk does.
    """
    refuse_existing(out)
    try:
        _make(out.parent)
    except OSError as error:
        raise _unwritable(out, error) from None
    # Named before it is made, so that an interrupt at any moment finds it.
    work = out.parent / f".{out.name}.{token_hex(8)}.partial"
    try:
        try:
            work.mkdir(mode=0o700)
        except OSError as error:
            raise _unwritable(out, error) from None
        with open(work / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write("locked")
            lock.flush()
            yield work
    except OSError as error:
        if isinstance(error, EdgepackError):
            raise
        raise _failed(out, error) from None
    finally:
        try:
            shutil.rmtree(work, ignore_errors=True)
        finally:  # an interrupt of that leaves nothing either
            shutil.rmtree(work, ignore_errors=True)


def _make(folder: Path) -> None:
    """Make a folder, and all above it, so that a loss of power cannot take it from the bundle in it."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _unwritable(out: Path, error: OSError) -> BuildError:
    return BuildError(f"Cannot write beside {out}: {error.strerror}.", hint="Choose another --out.")


def _failed(out: Path, error: OSError) -> BuildError:
    reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if out.exists():  # it was not there when the build began
        return BuildError(
            f"{out} is sealed, and the system refused what comes after it: {reason}.",
            hint=f"See whether the disk holds it: edgepack verify {out}",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        hint = "Free some space and repeat, or choose another place with --out."
    else:
        hint = "Nothing is sealed; the system's log may say what is wrong with the disk."
    return BuildError(f"Writing the bundle failed: {reason}.", hint=hint)


def publish(bundle: Path, out: Path) -> None:
    """Flush every file of a finished bundle and give it its name in one step."""
    for path in [*bundle.rglob("*"), bundle]:
        _flush(path)
    refuse_existing(out)
    os.rename(bundle, out)
    _flush(out.parent)


def evidence_of_failures(out: Path) -> Path:
    """Return the folder for the evidence of variants that fail: ``NAME.failed`` beside ``NAME.edgepack``.

    Each build of ``out`` leaves there what failed in it, and so nothing where nothing did. Raises
    ``OutputExistsError`` for a folder that holds anything but evidence.
    """
    folder = out.with_name(out.name.removesuffix(".edgepack") + ".failed")
    if folder.is_symlink() or (folder.exists() and not _holds_evidence(folder)):
        raise OutputExistsError(
            f"{folder} exists already, and is not the evidence of an earlier build.",
            hint="Remove it or choose another --out.",
        )
    return folder


def _holds_evidence(folder: Path) -> bool:
    return folder.is_dir() and all(path.is_file() and path.suffix == ".json" for path in folder.iterdir())


def replace(folder: Path, out: Path) -> None:
    """Give a finished folder of evidence its name in place of an earlier one; an empty folder leaves nothing there."""
    if out.exists():
        os.rename(out, folder.with_suffix(".before"))
    if any(folder.iterdir()):
        publish(folder, out)


def refuse_existing(out: Path) -> None:
    """Raise ``OutputExistsError`` where the output exists, even as an empty folder.

    What a build left beside it that was killed is removed in any case.
    """
    _remove_abandoned(out.parent)
    try:
        there = out.exists() or out.is_symlink()
    except OSError as error:
        raise _unwritable(out, error) from None
    if there:
        raise OutputExistsError(f"{out} exists already.", hint="Remove it or choose another --out.")


def _remove_abandoned(beside: Path) -> None:
    try:
        places = list(beside.iterdir())
    except OSError:  # it is not there yet, or may not be read
        return
    for work in places:
        if not _WORK.fullmatch(work.name) or work.is_symlink():
            continue
        try:
            with open(work / _LOCK, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.read() or _is_old(work):
                    shutil.rmtree(work)
        except FileNotFoundError:
            if _is_old(work):
                with suppress(OSError):  # it holds what no build has put there, or is gone
                    work.rmdir()
        except OSError:  # another build's, or another user's
            continue


def _is_old(work: Path) -> bool:
    """Say whether a folder is too old to be that of a build that is about to lock it."""
    try:
        return time.time() - work.stat().st_mtime > _MOMENT
    except OSError:
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
