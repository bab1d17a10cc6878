"""``edgepack push``, ``pull`` and ``mirror``, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import docker_registry
import pytest
import small_bundle
from web_servers import folder, serving

from edgepack.bundle.files import open_bundle
from edgepack.cli import main


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle.write(tmp_path / "small.edgepack", [small_bundle.variant(id) for id in ("fake-q4", "fake-f32")])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.running(tmp_path_factory.mktemp("registry")) as host:
        yield host


def test_a_bundle_goes_by_a_registry(
    bundle: Path, registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"oci://{registry}/models/small:1"
    assert main(["push", str(bundle), where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["there"]) == (open_bundle(bundle).id, 0)
    assert main(["push", str(bundle), where]) == 0
    said = capsys.readouterr().out
    assert "pushed: 0 B sent" in said
    assert f"as {told['reference']}" in said
    copy = tmp_path / "copy"
    assert (
        main(["pull", told["reference"], "--variant", "fake-q4", "-o", str(copy), "--id", f"sha256:{told['id']}"]) == 0
    )
    assert "not in this copy: fake-f32" in capsys.readouterr().out
    assert open_bundle(copy).absent == ("fake-f32",)
    assert main(["pull", where, "-o", str(tmp_path / "pinned"), "--id", "sha256:" + "0" * 64]) == 1
    assert f"{where} is another bundle" in capsys.readouterr().err
    assert not (tmp_path / "pinned").exists()


def test_a_bundle_goes_by_a_web_folder(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    www, copy = tmp_path / "www", tmp_path / "copy"
    assert main(["mirror", str(bundle), "-o", str(www)]) == 0
    said = capsys.readouterr().out
    assert f"sha256:{open_bundle(bundle).id[:12]}" in said
    assert f"written to {www}" in said.replace("\n", " ")
    assert main(["mirror", str(bundle), "-o", str(www), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], [each["id"] for each in told["added"]]) == (0, [open_bundle(bundle).id])
    with serving(folder(www)) as server:
        assert main(["pull", f"{server.url}#small", "-o", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(copy)
    assert open_bundle(copy).id == open_bundle(bundle).id


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["pull", "small.edgepack", "-o", "x"], 2, "no address of a bundle"),
        (["pull", "oci://host/small", "-o", "x"], 2, "no tag and no digest"),
        (["pull", "http://models.example/", "-o", "x"], 2, "--plain-http"),
        (["push", "nowhere", "oci://127.0.0.1:1/small:1"], 1, "no bundle at nowhere"),
        (["mirror", "oci://127.0.0.1:1/small:1", "-o", "x"], 1, "127.0.0.1:1 cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_told(
    words: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []
