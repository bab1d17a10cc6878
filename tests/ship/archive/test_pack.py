"""A bundle in one file: the same bytes each time, which any tar reads and any engine could map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_bundle import add, variant, write, write_with_draft

import edgepack
from edgepack.bundle.files import MANIFEST, SIGNATURE, open_bundle
from edgepack.cli import main
from edgepack.errors import BundleDamagedError, BundleNotFoundError, OutputExistsError, UsageError
from edgepack_ship.archive import headers
from edgepack_ship.archive.packed import Archive
from edgepack_ship.incoming import Folder, opened
from edgepack_ship.packing import pack

IDS = ("fake-q4", "fake-f32", "other-q8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "small.edgepack", [variant(id) for id in IDS])


def packed(folder: Path, *variants: str, out: Path | None = None, force: bool = False) -> Path:
    out = out or folder.with_suffix(".edgepack.tar")
    assert pack(Folder(folder), out, variants or None, force=force).path == out
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_comes_first_and_every_payload_can_be_mapped(folder: Path) -> None:
    (folder / SIGNATURE).write_bytes(b"signed")
    with tarfile.open(packed(folder)) as tar:
        members = tar.getmembers()
        names = [each.name for each in members]
        assert names[:2] == [MANIFEST, SIGNATURE]
        assert names[2:] == list(open_bundle(folder).files())
        assert [each.offset_data % 4096 for each in members] == [0] * len(members)
        for each in members:
            assert (each.mode, each.uid, each.gid, each.uname, each.gname, each.mtime) == (0o644, 0, 0, "", "", 0)
            assert each.isreg()


def test_two_packings_are_the_same_bytes(
    folder: Path, tmp_path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packed(folder)
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    umask(0o077)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    second = packed(other)
    assert first.read_bytes() == second.read_bytes()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (first, second)] == [0o644, 0o600]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("tar", ["tar", "bsdtar", "busybox"])
def test_any_tar_unpacks_it_whole(tar: str, tmp_path: Path) -> None:
    if not shutil.which(tar):
        pytest.skip(f"needs {tar}")
    folder = add(write(tmp_path / "small.edgepack"), "é" + "x" * 120, b"a long name")
    (tmp_path / "out").mkdir()
    command = [tar, *(["tar"] if tar == "busybox" else []), "-xf", str(packed(folder)), "-C", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert done.stderr == ""
    assert files(tmp_path / "out") == files(folder)


def test_some_variants_make_a_file_of_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    some = packed(folder, "other-q8", "fake-q4")
    with Archive(some) as archive:
        assert archive.variants() == ("fake-q4", "other-q8")
        assert archive.contents().id == open_bundle(folder).id
        again = pack(archive, tmp_path / "again.tar", ["other-q8"])
    assert again.absent == ("fake-q4", "fake-f32")
    assert again.path.read_bytes() == packed(folder, "other-q8", out=tmp_path / "direct.tar").read_bytes()


def test_a_variant_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no variant 'mlx-f32'"):
        packed(folder, "mlx-f32")
    with Archive(packed(folder, "fake-q4")) as archive, pytest.raises(BundleDamagedError, match="does not hold"):
        pack(archive, tmp_path / "out.tar", ["fake-f32"])
    assert not (tmp_path / "out.tar").exists()


def test_a_draft_is_packed_too(tmp_path: Path) -> None:
    folder = write_with_draft(tmp_path / "small.edgepack")
    with Archive(packed(folder)) as archive:
        assert archive.contents().draft is not None
        assert {*archive.contents().files(), *archive.contents().manifests()} == set(files(folder))


def test_a_bundle_that_changed_is_not_packed(folder: Path) -> None:
    (folder / "variants/fake-f32/model.bin").write_bytes(b"weighed")
    with pytest.raises(BundleDamagedError, match=r"fake-f32/model\.bin .* sha256 differs"):
        packed(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_is_there_is_replaced_by_force_alone_and_only_a_bundle(folder: Path, tmp_path: Path) -> None:
    whole = packed(folder)
    with pytest.raises(OutputExistsError, match="exists already"):
        packed(folder, "fake-q4")
    size = whole.stat().st_size
    assert packed(folder, "fake-q4", force=True).stat().st_size < size
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(OutputExistsError, match="is no bundle"):
        packed(folder, out=tmp_path / "diary.txt", force=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        packed(folder, out=folder, force=True)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_headers_place_what_follows_them_wherever_they_stand() -> None:
    for at in range(0, 16 * 512, 512):
        for name, size in (("a", 0), ("b" * 100, 7), ("c" * 101, 1 << 20), ("é" * 500, 9 << 30), ("d", 1 << 40)):
            made = headers.encoded(name, size, at)
            assert (at + len(made)) % 4096 == 0
            length = headers.decoded(made[:512]).size
            path, told = headers.records(made[512 : 512 + length])
            last = headers.decoded(made[-512:])
            assert headers.name_of(path or last.name, folder=False) == name
            assert (last.size if told is None else told) == size


def test_a_payload_of_more_than_8_gib_is_read_where_it_is(tmp_path: Path) -> None:
    name, size = "variants/fake-q4/model.bin", 9 << 30
    payload = {"path": "model.bin", "size": size, "sha256": "0" * 64}
    folder = write(tmp_path / "small", [variant("fake-q4", files=[payload])])
    with open(tmp_path / "big.tar", "wb") as tar:
        for each, data in files(folder).items():
            length = size if each == name else len(data)
            tar.write(headers.encoded(each, length, tar.tell()))
            at = tar.tell()
            tar.write(data)
            tar.seek(at + length + len(headers.filling(length)))
        tar.write(headers.END)
    with Archive(tmp_path / "big.tar") as archive:
        file = archive.contents().files()[name]
        assert next(archive.blocks(name, file)).rstrip(b"\0") == b"weights"
        assert b"".join(archive.blocks(name, file, size - 5)) == bytes(5)
    with tarfile.open(tmp_path / "big.tar") as other:
        assert other.getmember(name).size == size


def test_a_packed_bundle_comes_in_by_the_one_door(folder: Path) -> None:
    with opened(str(packed(folder)), lambda id: None) as incoming:
        assert isinstance(incoming, Archive)
        name, file = next(iter(incoming.contents().files().items()))
        data = (folder / name).read_bytes()
        assert b"".join(incoming.blocks(name, file)) == data
        assert b"".join(incoming.blocks(name, file, 2)) == data[2:]
        assert incoming.signature() is None


def test_whoever_loads_it_is_told_the_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = packed(folder)
    with pytest.raises(BundleNotFoundError, match=f"edgepack unpack {tar}, or .*: edgepack install {tar}"):
        edgepack.load(tar)
    assert main(["inspect", str(tar)]) == 1
    assert f"hint: Unpack it with: edgepack unpack {tar}" in capsys.readouterr().err


def test_the_command_packs_and_reports(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["pack", "small.edgepack", "--variant", "fake-q4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    made = Path("small.edgepack.tar")
    assert report == {
        "path": str(made),
        "size": made.stat().st_size,
        "id": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        "variants": ["fake-q4"],
        "absent": ["fake-f32", "other-q8"],
    }
    assert main(["pack", "small.edgepack", "--force"]) == 0
    assert "with fake-q4, fake-f32, other-q8" in capsys.readouterr().out
