"""Any plain tar of a bundle's folder comes in whole, and of anything else nothing does."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from small_bundle import entry, manifest, read, variant, write, write_with_draft

from edgepack.bundle.files import DRAFT, MANIFEST, SIGNATURE, open_bundle
from edgepack.bundle.manifest import decode, encode
from edgepack.cli import main
from edgepack.errors import BundleDamagedError, BundleError, BundleNotFoundError
from edgepack_ship.archive import members
from edgepack_ship.archive.packed import Archive
from edgepack_ship.incoming import Folder
from edgepack_ship.packing import pack
from edgepack_ship.writing import write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "small.edgepack", [variant("fake-q4"), variant("fake-f32")])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpacked(tar: Path) -> dict[str, bytes]:
    """What is in the folder that was made of an archive."""
    with Archive(tar) as archive:
        return files(write_bundle(archive, tar.with_suffix(".out")).path)


def refusal(tar: Path) -> str:
    """Why an archive is refused, after which nothing lies beside it."""
    before = sorted(tar.parent.iterdir())
    with pytest.raises(BundleDamagedError) as caught:
        unpacked(tar)
    assert sorted(tar.parent.iterdir()) == before
    return caught.value.message


def tarred(
    folder: Path,
    *more: tarfile.TarInfo,
    changed: Mapping[str, bytes | None] | None = None,
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    """A tar of a bundle's folder by Python, with other members behind, and files changed or left out."""
    out = folder.parent / "by-hand.tar"
    data = files(folder) | dict(changed or {})
    with tarfile.open(out, "w", format=form) as tar:
        for name, content in data.items():
            if content is not None:
                tar.addfile(info(name, len(content)), io.BytesIO(content))
        for each in more:
            tar.addfile(each, io.BytesIO(bytes(each.size)))
    return out


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, target
    return made


def test_what_was_packed_is_unpacked(folder: Path, tmp_path: Path) -> None:
    (folder / SIGNATURE).write_bytes(b"signed")
    assert unpacked(pack(Folder(folder), tmp_path / "a.tar").path) == files(folder)


def test_a_draft_is_unpacked(tmp_path: Path) -> None:
    folder = write_with_draft(tmp_path / "small")
    assert unpacked(pack(Folder(folder), tmp_path / "a.tar").path) == files(folder)


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar"])
@pytest.mark.parametrize("how", ["folder", "inside", "absolute"])
def test_a_tar_of_the_folder_by_gnu_tar_is_one(form: str, how: str, folder: Path) -> None:
    what = {"folder": [folder.name], "inside": ["-C", folder.name, "."], "absolute": [str(folder)]}[how]
    _by("tar", f"--format={form}", "-cf", "a.tar", *what, within=folder.parent)
    assert unpacked(folder.parent / "a.tar") == files(folder)


@pytest.mark.parametrize("form", [[], ["--format=ustar"], ["--format=pax"], ["--format=gnutar"]])
def test_a_tar_of_the_folder_by_bsdtar_is_one(form: list[str], folder: Path) -> None:
    _by("bsdtar", *form, "-cf", "a.tar", folder.name, within=folder.parent)
    assert unpacked(folder.parent / "a.tar") == files(folder)


def _by(tar: str, *arguments: str, within: Path) -> None:
    if not shutil.which(tar) or (tar == "tar" and b"GNU" not in subprocess.check_output([tar, "--version"])):
        pytest.skip(f"needs {tar} of its own kind")
    subprocess.run([tar, *arguments], cwd=within, check=True, capture_output=True)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_folders_are_read(form: int, tmp_path: Path) -> None:
    name = "/".join(["f" * 60] * 4)
    plain = manifest([variant("fake-q4")], files=[entry("LICENSE", b"MIT\n"), entry(name, b"long")])
    folder = tmp_path / "small"
    (folder / "variants/fake-q4").mkdir(parents=True)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"long")
    (folder / "LICENSE").write_bytes(b"MIT\n")
    (folder / "variants/fake-q4/model.bin").write_bytes(b"weights")
    (folder / MANIFEST).write_bytes(encode(read(plain)))
    assert unpacked(tarred(folder, info("variants", kind=tarfile.DIRTYPE), form=form)) == files(folder)


def test_what_desktops_leave_is_passed_over(folder: Path) -> None:
    more = [info("._manifest.json", 163), info("variants/.DS_Store", 7), info("__MACOSX/x", 2)]
    assert unpacked(tarred(folder, *more)) == files(folder)


def test_a_variant_that_was_left_out_is_absent(folder: Path) -> None:
    with Archive(tarred(folder, changed={"variants/fake-f32/model.bin": None})) as archive:
        assert archive.variants() == ("fake-q4",)
        assert write_bundle(archive, folder.parent / "out").absent == ("fake-f32",)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (info("extra.txt", 3), "does not list 'extra.txt'"),
        (info("../up.txt", 3), "leaves the bundle"),
        (info("a/../../up.txt", 3), "leaves the bundle"),
        (info("/etc/up.txt", 3), "leaves the bundle"),
        (info("..", kind=tarfile.DIRTYPE), "leaves the bundle"),
        (info("a//b", 3), "leaves the bundle"),
        (info("a\\b", 3), "leaves the bundle"),
        (info("link", kind=tarfile.SYMTYPE, target="/etc/passwd"), "is a symbolic link"),
        (info("README.md", kind=tarfile.LNKTYPE, target="LICENSE"), "is a hard link"),
        (info("zero", kind=tarfile.CHRTYPE), "is a device"),
        (info("disk", kind=tarfile.BLKTYPE), "is a device"),
        (info("pipe", kind=tarfile.FIFOTYPE), "is a pipe"),
        (info("holes", kind=tarfile.GNUTYPE_SPARSE), "is a sparse file"),
        (info("odd", kind=b"Z"), "is of the kind"),
        (info(MANIFEST, 3), "stands there twice"),
        (info("./LICENSE", 4), "stands there twice"),
        (info("license", 4), "does not list 'license'"),
        (info("variants/fake-q4/more.bin", 4), "does not list"),
    ],
)
def test_a_member_that_is_none_of_the_bundle_s_is_refused(folder: Path, member: tarfile.TarInfo, said: str) -> None:
    tar = tarred(folder, member)
    assert said in refusal(tar)
    assert not (folder.parent.parent / "up.txt").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({MANIFEST: None}, "it has no manifest.json"),
        ({"LICENSE": None}, "it has no LICENSE"),
        ({"LICENSE": b"MIT"}, "'LICENSE' has 3 bytes where the manifest says 4"),
        ({"LICENSE": b"GPL\n"}, "its sha256 differs"),
        ({"variants/fake-q4/model.bin": b"weighed"}, "its sha256 differs"),
        ({MANIFEST: b"{}"}, "not a valid manifest"),
        ({SIGNATURE: bytes((4 << 20) + 1)}, "model.sig has more than"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(folder: Path, changed: Mapping[str, bytes | None], said: str) -> None:
    assert said in refusal(tarred(folder, changed=changed))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"GNU.sparse.major": "1"}, "'GNU.sparse.major' changes what follows"),
        ({"hdrcharset": "BINARY"}, "'hdrcharset' changes"),
        ({"SCHILY.realsize": "9"}, "'SCHILY.realsize' changes"),
        ({"path": "../up.txt"}, "leaves the bundle"),
        ({"path": "/up.txt"}, "leaves the bundle"),
        ({"size": "-1"}, "is no size"),
        ({"size": str(1 << 60)}, "says that it has"),
        ({"size": "99999"}, "cut off"),
        ({f"LIBARCHIVE.{n}": "" for n in range(99)}, "more than 64 records"),
        ({"comment": "x" * (1 << 20)}, "records of a member have more than"),
    ],
)
def test_records_that_would_bend_a_member_are_refused(folder: Path, record: dict[str, str], said: str) -> None:
    member = info("LICENSE")
    member.pax_headers = record
    assert said in refusal(tarred(folder, member, changed={"LICENSE": None}))


def test_records_for_all_that_follows_are_refused(folder: Path) -> None:
    out = folder.parent / "by-hand.tar"
    with tarfile.open(out, "w", pax_headers={"path": "manifest.json"}) as tar:
        tar.add(folder, ".")
    assert "is a header for all that follows" in refusal(out)


@pytest.mark.parametrize(
    ("one", "other"), [("notes", "NOTES"), ("caf\u00e9", "cafe\u0301"), ("a/x", "A/y"), ("a", "a/x")]
)
def test_names_that_are_one_on_some_systems_are_refused(folder: Path, one: str, other: str) -> None:
    plain = decode((folder / MANIFEST).read_bytes())
    more = [msgspec.convert(entry(name, b"1"), type(plain.files[0])) for name in (one, other)]
    changed = encode(msgspec.structs.replace(plain, files=[*plain.files, *more]))
    said = refusal(tarred(folder, changed={MANIFEST: changed, one: b"1", other: b"1"}))
    assert "are one place on some systems" in said


def test_an_archive_that_is_cut_off_anywhere_is_refused(folder: Path) -> None:
    whole = pack(Folder(folder), folder.parent / "a.tar").path.read_bytes()
    cut = folder.parent / "cut.tar"
    for size in (*range(0, len(whole), 512), len(whole) - 1, 100, 5000):
        cut.write_bytes(whole[:size])
        with pytest.raises(BundleDamagedError, match=r"cut off|no header"):
            Archive(cut)


def test_what_is_compressed_says_with_what(folder: Path) -> None:
    with tarfile.open(folder.parent / "a.tar", "w:gz") as tar:
        tar.add(folder, ".")
    with pytest.raises(BundleDamagedError, match=r"it is compressed.* gzip -d"):
        Archive(folder.parent / "a.tar")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("pipe", BundleError), ("", BundleError), ("nowhere", BundleNotFoundError)):
        with pytest.raises(error):
            Archive(tmp_path / name)
    with pytest.raises(BundleError):
        Archive(Path("a\0b"))


def test_more_members_than_a_bundle_can_have_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = tarred(folder)
    count = len(files(folder))
    monkeypatch.setattr(members, "MAX_MEMBERS", count)
    assert f"more than {count} members" in refusal(tar)
    monkeypatch.setattr(members, "MAX_MEMBERS", count + 1)
    monkeypatch.setattr(members, "MAX_NAMES", 40)
    assert "names have more than 40 bytes" in refusal(tar)


def test_a_file_that_shrinks_while_it_is_read_is_told(folder: Path) -> None:
    with Archive(pack(Folder(folder), folder.parent / "a.tar").path) as archive:
        os.truncate(folder.parent / "a.tar", 8192)
        with pytest.raises(BundleDamagedError, match="became shorter"):
            write_bundle(archive, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_a_signature_of_the_draft_itself_does_no_harm(tmp_path: Path) -> None:
    folder = write_with_draft(tmp_path / "small")
    (folder / DRAFT / SIGNATURE).write_bytes(b"signed")
    assert unpacked(tarred(folder)) == {k: v for k, v in files(folder).items() if k != f"{DRAFT}/{SIGNATURE}"}


def test_the_command_unpacks_and_reports(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    pack(Folder(folder), Path("other.edgepack.tar"))
    assert main(["unpack", "other.edgepack.tar", "--variant", "fake-f32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "other.edgepack",
        "id": open_bundle(folder).id,
        "variants": ["fake-f32"],
        "absent": ["fake-q4"],
    }
    assert main(["unpack", "other.edgepack.tar"]) == 1
    assert main(["unpack", "other.edgepack.tar", "--force"]) == 0
    assert "with fake-q4, fake-f32" in capsys.readouterr().out
    assert main(["unpack", str(folder)]) == 2
    assert "Name it with --out" in capsys.readouterr().err
