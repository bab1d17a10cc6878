"""Opening a bundle: a sound one opens, and every fault names its file and what differs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import small_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.bundle.files import MANIFEST, MAX_MANIFEST, Bundle, open_bundle
from edgepack.bundle.manifest import VERSION
from edgepack.errors import (
    BundleDamagedError,
    BundleError,
    BundleNotFoundError,
    BundleTooNewError,
    EdgepackError,
    UsageError,
)

WEIGHTS = "variants/fake-q4/model.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_bundle.write(tmp_path / "small")


def test_a_sound_bundle_opens(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.id == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert bundle.manifest.name == "small"
    assert bundle.read("LICENSE") == b"MIT\n"
    assert bundle.read(MANIFEST) == (folder / MANIFEST).read_bytes()
    assert (bundle.variant_path("fake-q4") / "model.bin").read_bytes() == b"weights"


def test_a_link_to_a_bundle_is_the_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder)
    assert open_bundle(tmp_path / "latest").path == folder


def refusal(folder: Path, kind: type[BundleError], verify: str = "full") -> str:
    with pytest.raises(kind) as caught:
        open_bundle(folder, verify=verify)  # type: ignore[arg-type]
    assert caught.type is kind
    return caught.value.message


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", WEIGHTS])
def test_a_flipped_byte_is_found_by_its_digest(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    message = refusal(folder, BundleDamagedError)
    assert name in message
    assert "sha256" in message
    open_bundle(folder, verify="sizes")


@pytest.mark.parametrize("verify", ["full", "sizes"])
def test_a_truncated_file_is_found_by_its_size(folder: Path, verify: str) -> None:
    (folder / WEIGHTS).write_bytes(b"weight")
    message = refusal(folder, BundleDamagedError, verify)
    assert WEIGHTS in message
    assert "6 bytes where the manifest says 7" in message


@pytest.mark.parametrize("verify", ["full", "sizes"])
def test_a_missing_file_is_named(folder: Path, verify: str) -> None:
    (folder / "LICENSE").unlink()
    assert "LICENSE of the bundle is damaged: it is missing" in refusal(folder, BundleDamagedError, verify)


@pytest.mark.parametrize("name", ["extra.txt", "variants/fake-q4/extra.bin", "variants/other/model.bin", ".hidden"])
def test_a_file_that_is_not_listed_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    message = refusal(folder, BundleDamagedError, "sizes")
    assert name in message
    assert "does not list it" in message


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._manifest.json", "variants/fake-q4/._model.bin", "variants/Thumbs.db", ".directory",
     "variants/fake-q4/desktop.ini", "__MACOSX/._small", "variants/PaxHeaders.17/model.bin", "lost+found/#1",
     "Icon\r"],
)  # fmt: skip
def test_what_a_desktop_or_an_archive_leaves_is_passed_over_and_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0")
    (passed_over,) = open_bundle(folder).foreign
    assert name.startswith(passed_over)
    assert open_bundle(small_bundle.write(folder.parent / "other")).foreign == ()


@pytest.mark.parametrize(
    "name", [".DS_Store.so", "x._y", "Thumbs.db.exe", "desktop.ini2", "macosx/a", ".DS_Store/a", "._"]
)
def test_what_only_looks_like_it_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\0")
    assert "does not list it" in refusal(folder, BundleDamagedError, "sizes")


def test_a_link_of_a_foreign_name_is_refused(folder: Path) -> None:
    (folder / ".DS_Store").symlink_to("LICENSE")
    assert "symbolic link" in refusal(folder, BundleDamagedError, "sizes")


def test_a_pipe_of_a_foreign_name_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "Thumbs.db")
    assert "does not list it" in refusal(folder, BundleDamagedError, "sizes")


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "LICENSE").rename(tmp_path / "elsewhere")
    (folder / "LICENSE").symlink_to(tmp_path / "elsewhere")
    assert "LICENSE of the bundle is damaged: it is a symbolic link" in refusal(folder, BundleDamagedError)


def test_a_link_in_place_of_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "variants").rename(tmp_path / "elsewhere")
    (folder / "variants").symlink_to(tmp_path / "elsewhere")
    assert "variants of the bundle is damaged: it is a symbolic link" in refusal(folder, BundleDamagedError)


def test_a_manifest_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).rename(tmp_path / "elsewhere")
    (folder / MANIFEST).symlink_to(tmp_path / "elsewhere")
    assert "manifest.json of the bundle is damaged: it is a symbolic link" in refusal(folder, BundleDamagedError)


@pytest.mark.parametrize("name", ["LICENSE", MANIFEST])
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} of the bundle is damaged: it is not a regular file" in refusal(folder, BundleDamagedError)


def test_a_folder_in_place_of_the_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    assert f"{MANIFEST} of the bundle is damaged: it is not a regular file" in refusal(folder, BundleDamagedError)


def test_a_manifest_that_is_too_large_is_not_read(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 5 << 30)
    assert f"it has more than {MAX_MANIFEST:,} bytes" in refusal(folder, BundleDamagedError)


def test_a_shared_file_that_is_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(folder)
    assert bundle.read("LICENSE") == b"MIT\n"
    monkeypatch.setattr("edgepack.bundle.files.MAX_READ", 3)
    with pytest.raises(BundleDamagedError, match="LICENSE of the bundle is damaged: it has more than 3 bytes"):
        bundle.read("LICENSE")


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").mkdir()
    assert "LICENSE of the bundle is damaged: it is missing" in refusal(folder, BundleDamagedError)


def test_a_path_without_anything_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleNotFoundError):
        open_bundle("a\0b")


def test_a_file_or_another_folder_is_no_bundle(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="is a file; a bundle is a folder"):
        open_bundle(folder / MANIFEST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleNotFoundError, match=r"it has no manifest\.json"):
        open_bundle(tmp_path / "empty")


def test_a_loop_of_links_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(BundleNotFoundError):
        open_bundle(tmp_path / "a")


def test_a_corrupt_manifest_is_damaged(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-20])
    assert MANIFEST in refusal(folder, BundleDamagedError)


def test_a_newer_schema_is_too_new(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_bytes())
    document["schema"]["version"] = VERSION + 1
    (folder / MANIFEST).write_text(json.dumps(document))
    assert f"schema {VERSION + 1}" in refusal(folder, BundleTooNewError)


def test_reading_checks_what_it_returns(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "LICENSE").write_bytes(b"GPL\n")
    with pytest.raises(BundleDamagedError, match="LICENSE"):
        bundle.read("LICENSE")
    with pytest.raises(BundleNotFoundError, match="secrets"):
        bundle.read("../secrets")
    with pytest.raises(UsageError, match="It holds: fake-q4"):
        bundle.variant_path("fake-q8")


def test_only_the_chosen_variant_is_hashed(tmp_path: Path) -> None:
    variants = [small_bundle.variant("fake-q4"), small_bundle.variant("fake-q8")]
    folder = small_bundle.write(tmp_path / "two", variants, {"fake-q8": b"WEIGHTS"})
    bundle = open_bundle(folder, verify="sizes")
    bundle.check(["fake-q4"])
    with pytest.raises(BundleDamagedError, match="fake-q8"):
        bundle.check(["fake-q8"])
    with pytest.raises(BundleDamagedError, match="fake-q8"):
        bundle.check()


def test_progress_adds_up_to_the_size(folder: Path) -> None:
    bundle = open_bundle(folder)
    seen: list[tuple[str, int]] = []
    bundle.check(progress=lambda name, count: seen.append((name, count)))
    assert sum(count for _, count in seen) == bundle.size()
    assert {name for name, _ in seen} == {"LICENSE", "tokenizer.bin", "tokenizer.json", "tokenizer_config.json",
                                          "chat_template.jinja", WEIGHTS}  # fmt: skip
    assert bundle.size([]) == bundle.size() - len(b"weights")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(small_bundle.write(tmp_path_factory.mktemp("fuzz") / "small"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10**9), value=st.integers(1, 255), name=st.sampled_from(["LICENSE", MANIFEST, WEIGHTS]))
def test_no_changed_byte_goes_unnoticed(intact: Bundle, place: int, value: int, name: str) -> None:
    path = intact.path / name
    before = path.read_bytes()
    data = bytearray(before)
    data[place % len(data)] ^= value
    path.write_bytes(data)
    try:
        # A changed manifest may still be a sound one: then it is another bundle, with another id.
        assert open_bundle(intact.path).id != intact.id
    except EdgepackError:
        pass
    finally:
        path.write_bytes(before)
