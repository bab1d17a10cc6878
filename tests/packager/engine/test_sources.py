"""The pinned sources: fetched by pip from whatever index it has, and unpacked as a stranger's archive is."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import engine_sdist as sdist
import pytest

from edgepack.errors import BuildError, SourceError
from edgepack_packager.engine import sources


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder, with a small sdist that has the pinned name; and pip has no other."""
    project = tmp_path / "simple" / sources.PACKAGE
    project.mkdir(parents=True)
    archive = sdist.write(project / f"llama_cpp_python-{sources.VERSION}.tar.gz")
    (project / "index.html").write_text(f'<a href="{archive.name}">{archive.name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return archive


def test_pip_fetches_the_archive_and_builds_nothing_of_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SHA256", sdist.digest(index))
    found = sources.fetch(tmp_path / "work")
    assert found.parent == tmp_path / "work"
    assert found.read_bytes() == index.read_bytes()


def test_another_file_of_that_name_is_refused_by_its_digest(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"DO NOT MATCH THE HASHES|Got  "):
        sources.fetch(tmp_path / "work")
    with pytest.raises(SourceError, match=f"its sha256 is {sdist.digest(index)}, not {sources.SHA256}"):
        sources.unpack(index, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_an_index_without_it_is_a_reason(index: Path, tmp_path: Path) -> None:
    (index.parent / "index.html").write_text("")
    with pytest.raises(SourceError, match="No matching distribution") as error:
        sources.fetch(tmp_path / "work")
    assert "--source FILE.tar.gz" in str(error.value)


def test_only_what_is_compiled_is_unpacked(tmp_path: Path) -> None:
    root = sources.extract(sdist.write(tmp_path / "a.tar.gz"), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == {
        name for name in sdist.FILES if name.startswith(sdist.TREE) and not name.startswith(f"{sdist.TREE}/models")
    }


def hostile(name: str, **changes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    "member",
    [
        hostile(f"{sdist.TREE}/src/../../../../../escaped.txt"),
        hostile(f"{sdist.TREE}/src/link", type=tarfile.SYMTYPE, linkname="../../../../../etc/passwd"),
        hostile(f"{sdist.TREE}/src/link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        hostile(f"{sdist.TREE}/src/pipe", type=tarfile.FIFOTYPE),
        hostile(f"{sdist.TREE}/src/disk", type=tarfile.BLKTYPE, devmajor=8),
    ],
    ids=lambda member: member.name.rpartition("/")[2] + str(member.type),
)
def test_what_is_no_file_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(member)
    with pytest.raises(SourceError, match="is no file"):
        sources.extract(archive, tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()


def test_an_archive_that_unpacks_without_end_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    member = hostile(f"{sdist.TREE}/src/zeros.cpp", size=1 << 40)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(1 << 20)))
    with pytest.raises(SourceError, match="larger than the sources"):
        sources.extract(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not list(tmp_path.rglob("zeros.cpp"))


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive", gzip.compress(b"no archive"), gzip.compress(bytes(600))[:-6]],
    ids=["empty", "text", "compressed text", "cut"],  # as bytes they would hold the time, and differ between workers
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(SourceError):
        sources.extract(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    whole = sdist.write(tmp_path / "a.tar.gz", sdist.FILES | {f"{sdist.TREE}/src/x.cpp": bytes(range(256)) * 64})
    buffer = io.BytesIO(whole.read_bytes())
    whole.write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(SourceError):
        sources.extract(whole, tmp_path / "out")


def test_the_barrier_is_changed_once_and_only_where_it_is_what_it_was(tmp_path: Path) -> None:
    root = sources.extract(sdist.write(tmp_path / "a.tar.gz"), tmp_path / "out")
    sources.change(root)
    changed = (root / "ggml/src/ggml-cpu/ggml-cpu.c").read_text()
    assert all(new in changed for _, new in sources.CHANGES)
    assert "edgepack_sleep" in (root / "ggml/src/ggml-cpu/waiting.h").read_text()
    with pytest.raises(BuildError, match="is there 0 times"):
        sources.change(root)
