"""Files that were read and found whole on this device, and to which nobody can have written since.

Linux renews a file's ctime at every write, rename and change of its times, and lets no program choose it. A file of the
same device, inode, size, mtime and ctime has the same bytes then, on these conditions, which ADR 12 argues for:

- Its file system is local, and one that renews ctime also when a mapped page is written.
- When it was read it had not changed for a minute, so that no later write can leave the same ctime however coarse that
  is, and all its pages were on the disk: the first write to a mapped page is stamped, and others only once it is saved.
- It is the user's own or the administrator's, and neither everybody nor a foreign group may write to it.
- The system was not restarted meanwhile: who writes to a disk elsewhere stamps it as he likes.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from edgepack.device.state import findings, recall, remember

SETTLED_S: Final = 60
"""How long a file must not have changed before its digest is remembered. File systems stamp in steps of up to two
seconds, and Linux saves a page at most half a minute after its first write, so that nobody waits for that here."""

_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
# What they hold is another file's or another computer's, where it changes without a word to the file system.
_BORROWED: Final = ("/dev/loop", "/dev/nbd", "/dev/ram", "/dev/zram")


class Unchanged:
    """What this device remembers of the files of the bundle at a path: an ``edgepack.bundle.files.Memory``.

    Nothing here raises. What was found is lost without ``save``. ``proc`` and ``clock``, which returns nanoseconds
    since 1970, are others for tests.
    """

    def __init__(self, bundle: Path, proc: Path = Path("/proc"), clock: Callable[[], int] = time.time_ns) -> None:
        self._proc, self._clock = proc, clock
        self._question = f"whole files of {bundle}"
        # Nothing is remembered where the system does not say when it was started, which Linux alone does so.
        self._boot = _text(self._proc / "sys/kernel/random/boot_id").strip() if hasattr(os, "geteuid") else ""
        self._known = (recall(self._question, self._boot, _Known) or {}) if self._boot and _private() else {}
        self._before: dict[str, str | None] = {}
        self._news = False

    def holds(self, name: str, sha256: str, descriptor: int) -> bool:
        """See ``Memory.holds``."""
        if not self._boot:  # Windows, for one, has not even the questions that follow
            return False
        with suppress(OSError):
            status = os.fstat(descriptor)
            fdinfo = _text(self._proc / f"self/fdinfo/{descriptor}")
            if not ours(status, os.geteuid(), os.getegid()) or not stamps_writes(fdinfo, self._mounts):
                return False
            now = stamp(status)
            if self._known.get(name) == (sha256, now):
                return True
            if status.st_ctime_ns <= self._clock() - SETTLED_S * 10**9:
                os.fsync(descriptor)  # whoever writes to a mapped page from here on leaves another stamp
                self._before[name] = now
        return False

    def found(self, name: str, sha256: str) -> None:
        """See ``Memory.found``."""
        if before := self._before.get(name):
            self._known[name] = (sha256, before)
            self._news = True

    def save(self) -> None:
        """Keep what was found for the next program."""
        if self._news:
            remember(self._question, self._boot, msgspec.json.encode(self._known))

    @cached_property
    def _mounts(self) -> str:
        return _text(self._proc / "self/mountinfo")


_Known = dict[str, tuple[str, str]]
"""The sha256 and the stamp of a file, by its name."""


def stamp(status: os.stat_result) -> str:
    """Return what differs after every write to a file, and from that of every other file."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def ours(status: os.stat_result, user: int, group: int) -> bool:
    """Say whether only the user, the user's group and the administrator may write to a file or folder."""
    return (
        status.st_uid in (0, user)
        and not status.st_mode & stat.S_IWOTH
        and (not status.st_mode & stat.S_IWGRP or status.st_gid == group)
    )


def stamps_writes(fdinfo: str, mountinfo: str) -> bool:
    """Say whether a file lies where every write renews its ctime, from its /proc/self/fdinfo/N and from
    /proc/self/mountinfo (proc(5))."""
    mount = re.search(r"^mnt_id:\s*(\d+)$", fdinfo, re.MULTILINE)
    if mount is None or (line := re.search(rf"^{mount[1]} .* - (\S+) (\S+) ", mountinfo, re.MULTILINE)) is None:
        return False
    return line[1] in _FILE_SYSTEMS and not line[2].startswith(_BORROWED)


def _private() -> bool:
    """Whether nobody else can have written what is remembered."""
    try:
        return ours(findings().stat(), os.geteuid(), os.getegid())
    except (OSError, RuntimeError):
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except (OSError, ValueError):
        return ""
