"""What is not read again: only files to which nobody can have written, whatever way was taken."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_bundle

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.state import findings
from edgepack.device.unchanged import SETTLED_S, Unchanged, ours, stamp, stamps_writes
from edgepack.errors import BundleDamagedError

WEIGHTS = "variants/fake-q4/model.bin"
TYPICAL = "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(small_bundle.write(tmp_path / "small"))


@pytest.fixture
def proc(bundle: Bundle, tmp_path: Path) -> Path:
    """A system whose temporary folder lies on ext4: most of these tests hold on any file system."""
    made = tmp_path / "proc"
    (made / "self").mkdir(parents=True)
    (made / "self/fdinfo").symlink_to("/proc/self/fdinfo")
    (made / "self/mountinfo").write_text(TYPICAL.replace("29", mount_id(bundle), 1))
    boots(made, "one")
    return made


def mount_id(bundle: Bundle) -> str:
    with (bundle.path / WEIGHTS).open("rb") as file:
        return Path(f"/proc/self/fdinfo/{file.fileno()}").read_text().partition("mnt_id:")[2].split()[0]


def boots(proc: Path, id: str) -> None:
    place = proc / "sys/kernel/random/boot_id"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{id}\n")


def later() -> int:
    """The time when what was written just now has settled."""
    return time.time_ns() + (SETTLED_S + 1) * 10**9


def reads(bundle: Bundle, proc: Path, clock: Callable[[], int] = later) -> list[str]:
    """Check a bundle as a program does that has just been started; return the files that were read for it."""
    read: list[str] = []
    memory = Unchanged(bundle.path, proc, clock)
    bundle.check(progress=lambda name, count: read.append(name), memory=memory)
    memory.save()
    return read


def tick(bundle: Bundle, scratch: Path) -> None:
    """Wait until the file system stamps with a later time than the weights', for some thousandths of a second."""
    while True:
        scratch.write_bytes(b"")
        if scratch.stat().st_ctime_ns > (bundle.path / WEIGHTS).stat().st_ctime_ns:
            return


def test_what_was_found_whole_is_not_read_again(bundle: Bundle, proc: Path) -> None:
    assert set(reads(bundle, proc)) == {name for name, _ in bundle._files(None)}
    assert reads(bundle, proc) == []


# Ways of changing a byte. Each is given the file and what it is to hold, of the same length.


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def overwrite_and_set_times_back(path: Path, data: bytes) -> None:
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_with_times_kept(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    shutil.copystat(path, other)
    other.replace(path)


def write_through_another_name(path: Path, data: bytes) -> None:
    before = path.stat()
    other = path.parent.parent.parent.parent / "link"
    other.hardlink_to(path)
    other.write_bytes(data)
    other.unlink()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_names(path: Path, data: bytes) -> None:
    """The old file stays, under another name, and a copy with all that can be copied takes its place."""
    path.rename(path.parent.parent.parent.parent / "kept")
    shutil.copy2(path.parent.parent.parent.parent / "kept", path)
    overwrite_and_set_times_back(path, data)


def write_a_mapped_page(path: Path, data: bytes) -> None:
    before = path.stat()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:] = data
        mapped.flush()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        overwrite_and_set_times_back,
        replace_with_times_kept,
        write_through_another_name,
        swap_names,
        write_a_mapped_page,
    ],
)
def test_a_changed_byte_is_found_whatever_way_it_came(
    bundle: Bundle, proc: Path, tmp_path: Path, change: Callable[[Path, bytes], None]
) -> None:
    reads(bundle, proc)
    assert reads(bundle, proc) == []
    tick(bundle, tmp_path / "scratch")
    change(bundle.path / WEIGHTS, b"Weights")
    with pytest.raises(BundleDamagedError, match="sha256"):
        reads(bundle, proc)


def test_a_write_to_a_page_that_was_mapped_and_written_before_is_found(
    bundle: Bundle, proc: Path, tmp_path: Path
) -> None:
    path = bundle.path / WEIGHTS
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        if not stamps_writes(Path(f"/proc/self/fdinfo/{file.fileno()}").read_text(), mountinfo()):
            pytest.skip("the temporary folder's file system does not promise it")
        mapped[:] = b"weights"  # the page may be written from here on without another word
        reads(bundle, proc)
        assert reads(bundle, proc) == []
        tick(bundle, tmp_path / "scratch")
        mapped[:1] = b"W"
        with pytest.raises(BundleDamagedError, match="sha256"):
            reads(bundle, proc)


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(bundle: Bundle, proc: Path, tmp_path: Path) -> None:
    def meanwhile(name: str, count: int) -> None:
        if name == WEIGHTS:
            tick(bundle, tmp_path / "scratch")
            overwrite_and_set_times_back(bundle.path / WEIGHTS, b"Weights")

    memory = Unchanged(bundle.path, proc, later)
    bundle.check(progress=meanwhile, memory=memory)  # it was whole when it was read
    memory.save()
    with pytest.raises(BundleDamagedError, match="sha256"):
        reads(bundle, proc)


def test_a_damaged_file_is_not_remembered(bundle: Bundle, proc: Path) -> None:
    overwrite(bundle.path / WEIGHTS, b"Weights")
    for _ in range(2):
        with pytest.raises(BundleDamagedError, match="sha256"):
            reads(bundle, proc)


def test_a_digest_is_remembered_not_a_name(bundle: Bundle, proc: Path) -> None:
    reads(bundle, proc)
    memory = Unchanged(bundle.path, proc, later)
    with (bundle.path / WEIGHTS).open("rb") as file:
        assert memory.holds(WEIGHTS, hashlib.sha256(b"weights").hexdigest(), file.fileno())
        assert not memory.holds(WEIGHTS, hashlib.sha256(b"Weights").hexdigest(), file.fileno())
        assert not memory.holds("LICENSE", hashlib.sha256(b"weights").hexdigest(), file.fileno())


def test_what_changed_just_now_or_in_the_future_is_read_again(bundle: Bundle, proc: Path) -> None:
    everything = reads(bundle, proc, time.time_ns)
    assert reads(bundle, proc, time.time_ns) == everything
    assert reads(bundle, proc, lambda: time.time_ns() - 3600 * 10**9) == everything  # the clock was set back
    assert reads(bundle, proc) == everything
    assert reads(bundle, proc) == []


def test_a_restart_forgets(bundle: Bundle, proc: Path) -> None:
    everything = reads(bundle, proc)
    boots(proc, "two")
    assert reads(bundle, proc) == everything
    assert reads(bundle, proc) == []


def test_a_system_that_does_not_say_when_it_started_remembers_nothing(bundle: Bundle, proc: Path) -> None:
    shutil.rmtree(proc / "sys")
    assert reads(bundle, proc) == reads(bundle, proc) != []


def test_a_file_that_everybody_may_write_is_read_again(bundle: Bundle, proc: Path) -> None:
    (bundle.path / WEIGHTS).chmod(0o666)
    reads(bundle, proc)
    assert reads(bundle, proc) == [WEIGHTS]


def test_a_memory_that_everybody_may_write_is_not_read(bundle: Bundle, proc: Path) -> None:
    everything = reads(bundle, proc)
    findings().chmod(0o777)
    assert reads(bundle, proc) == everything
    findings().chmod(0o755)
    assert reads(bundle, proc) == []


def test_a_damaged_memory_is_not_read(bundle: Bundle, proc: Path) -> None:
    everything = reads(bundle, proc)
    (kept,) = findings().iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"model.bin", b"model.bim"))
    assert reads(bundle, proc) == everything


def test_another_device_inode_size_or_time_is_another_stamp() -> None:
    fields = range(10)
    times = {"st_atime_ns": 7, "st_mtime_ns": 8 * 10**9 + 1, "st_ctime_ns": 9 * 10**9 + 1}
    assert stamp(os.stat_result(fields, times)) == "2 1 6 8000000001 9000000001"


@pytest.mark.parametrize(
    ("mode", "owner", "group", "trusted"),
    [
        (0o644, 1000, 1000, True),
        (0o644, 0, 0, True),
        (0o644, 1001, 1000, False),
        (0o664, 1000, 1000, True),
        (0o664, 1000, 100, False),
        (0o646, 1000, 1000, False),
    ],
)
def test_a_file_is_ours_where_nobody_else_may_write_to_it(mode: int, owner: int, group: int, trusted: bool) -> None:
    status = os.stat_result((0o100000 | mode, 1, 1, 1, owner, group, 7, 0, 0, 0))
    assert ours(status, user=1000, group=1000) == trusted


@pytest.mark.parametrize(
    ("line", "trusted"),
    [
        (TYPICAL, True),
        ("29 1 0:31 /@home /home rw - btrfs /dev/sda2 rw,subvol=/@home\n", True),
        ("29 1 179:2 / / rw,noatime shared:1 master:2 - f2fs /dev/root rw\n", True),
        ("29 1 0:44 / /tmp rw shared:4 - tmpfs tmpfs rw\n", False),
        ("29 1 0:50 / /mnt rw - nfs4 server:/export rw\n", False),
        ("29 1 0:51 / /mnt rw - fuse.sshfs user@server: rw\n", False),
        ("29 1 0:52 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b\n", False),
        ("29 1 7:1 / /snap rw - squashfs /dev/loop1 ro\n", False),
        ("29 1 7:2 / /mnt rw - ext4 /dev/loop2 rw\n", False),
        ("29 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw\n", False),
        ("129 1 254:0 / / rw - ext4 /dev/vda rw\n", False),
        ("", False),
    ],
)
def test_only_local_file_systems_stamp_every_write(line: str, trusted: bool) -> None:
    others = "21 1 0:20 / /proc rw - proc proc rw\n2 1 254:0 / /boot rw - ext4 /dev/vda1 rw\n"
    assert stamps_writes("pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t7\n", others + line) == trusted
    assert not stamps_writes("pos:\t0\n", others + line)
