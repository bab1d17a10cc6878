"""A bundle grows in a folder that is gone when anything goes wrong, and nothing has its name before it is whole."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from edgepack.bundle import work
from edgepack.errors import BuildError, OutputExistsError


def test_published_bundle_is_all_that_is_left(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "one.edgepack"
    with work.folder(out) as scratch:
        bundle = scratch / "bundle"
        bundle.mkdir()
        (bundle / "file").write_text("x")
        assert not out.exists()
        work.publish(bundle, out)
    assert [path.name for path in out.parent.iterdir()] == ["one.edgepack"]
    assert (out / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BuildError("no"), RuntimeError("fault")])
def test_nothing_is_left_after_an_error(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), work.folder(tmp_path / "out") as scratch:
        (scratch / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(number: int, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="The build failed"), work.folder(tmp_path / "out"):
        raise OSError(number, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_output_is_refused(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match="exists already"), work.folder(out):
        pass


def test_an_output_that_appears_during_the_build_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError), work.folder(out) as scratch:
        bundle = scratch / "bundle"
        bundle.mkdir()
        out.write_text("mine")
        work.publish(bundle, out)
    assert out.read_text() == "mine"


def test_the_next_build_removes_what_a_killed_one_left_but_not_one_that_runs(tmp_path: Path) -> None:
    others = {name: tmp_path / f".{name}.partial" for name in ("a [b]*\n.0123456789abcdef", f"out.{'a' * 16}", "mine")}
    for folder in others.values():
        folder.mkdir()
        (folder / "weights").write_text("some")
    with work.folder(tmp_path / "running") as running, work.folder(tmp_path / "out"):
        assert [name for name, folder in others.items() if folder.exists()] == ["mine"]
        assert running.exists()


def test_while_a_folder_is_made_nobody_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock it looks like one that a killed build left."""
    seen: list[bool] = []
    mkdir = Path.mkdir

    def made(folder: Path, **options: Any) -> None:
        mkdir(folder, **options)
        work._remove_abandoned(tmp_path)
        seen.append(folder.exists())

    monkeypatch.setattr(Path, "mkdir", made)
    with work.folder(tmp_path / "out"):
        pass
    assert seen == [True]


def test_a_folder_that_another_program_has_locked_delays_a_build_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_TRIES", 2)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with work.folder(tmp_path / "out") as scratch:
        assert scratch.exists()
    os.close(other)


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildError, match="Cannot write beside"), work.folder(tmp_path / "file" / "out"):
        pass


def test_what_the_system_refuses_in_the_middle_is_a_sentence_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"failed: /x/file: Input/output error\."), work.folder(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error", "/x/file")
    assert list(tmp_path.iterdir()) == []


def test_an_error_after_the_bundle_has_its_name_says_that_it_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="out is sealed, and the system refused"), work.folder(out) as scratch:
        (scratch / "bundle").mkdir()
        work.publish(scratch / "bundle", out)
        raise OSError(errno.EIO, "Input/output error")
    assert out.is_dir()


@pytest.mark.parametrize("name", ["out", "[o]ut*"])
def test_what_a_killed_build_left_goes_also_beside_a_bundle_that_is_there(name: str, tmp_path: Path) -> None:
    out, left = tmp_path / name, tmp_path / f".{name}.{'0' * 16}.partial"
    for folder in (out, left):
        folder.mkdir()
    (left / "weights").write_text("some")
    with pytest.raises(OutputExistsError):
        work.refuse_existing(out)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# With force


def older(out: Path) -> Path:
    out.mkdir()
    (out / "manifest.json").write_text("old")
    return out


def made(scratch: Path) -> Path:
    bundle = scratch / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("new")
    return bundle


def test_force_replaces_a_bundle_when_the_new_one_is_whole(tmp_path: Path) -> None:
    out = older(tmp_path / "out")
    with work.folder(out, force=True) as scratch:
        bundle = made(scratch)
        assert (out / "manifest.json").read_text() == "old"
        work.publish(bundle, out, force=True)
    assert (out / "manifest.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_build_that_fails_leaves_what_it_would_have_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = older(tmp_path / "out")
    with pytest.raises(BuildError, match="no"), work.folder(out, force=True) as scratch:
        made(scratch)
        raise BuildError("no")
    assert (out / "manifest.json").read_text() == "old"
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if Path(source).name == "bundle":
            raise OSError(errno.EIO, "Input/output error", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BuildError, match="The build failed"), work.folder(out, force=True) as scratch:
        work.publish(made(scratch), out, force=True)
    assert (out / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["folder", "file", "link to a bundle"])
def test_force_replaces_bundles_alone(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(older(tmp_path / "real"))
    with pytest.raises(OutputExistsError, match="is no bundle, and --force replaces nothing else"):
        work.refuse_existing(out, force=True)
    assert out.exists()


def test_what_is_there_says_whether_force_would_help(tmp_path: Path) -> None:
    for out, helps in ((older(tmp_path / "bundle"), True), (tmp_path, False)):
        with pytest.raises(OutputExistsError) as raised:
            work.refuse_existing(out)
        assert ("--force" in str(raised.value)) == helps


def test_a_failure_after_the_replacement_says_that_it_is_sealed(tmp_path: Path) -> None:
    out = older(tmp_path / "out")
    with pytest.raises(BuildError, match="out is sealed"), work.folder(out, force=True) as scratch:
        work.publish(made(scratch), out, force=True)
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(BuildError, match="The build failed"), work.folder(out, force=True):
        raise OSError(errno.EIO, "Input/output error")
