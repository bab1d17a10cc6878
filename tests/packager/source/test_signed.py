"""A source that its publisher signed: what is read is what was signed, and the bundle says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest
import signing

from edgepack.cli import main
from edgepack.errors import SourceError, UsageError
from edgepack.trust import statement
from edgepack.trust.statement import Envelope, Statement
from edgepack_packager.build import build
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import needed

PLAIN = Recipe(("mlx",), ("f32",), unproven=True)


def sign(folder: Path, changes: Mapping[str, str | None] | None = None, hint: str | None = "ab") -> Path:
    """Sign a folder as its publisher; ``changes`` are digests that are another in the statement, None for none."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    found.pop("model.sig", None)
    told = {name: digest for name, digest in (found | dict(changes or {})).items() if digest is not None}
    payload = statement.written(Statement("demo", told))
    signature = signing.key().sign(Envelope(payload, b"").message)
    (folder / "model.sig").write_bytes(statement.sealed(Envelope(payload, signature, hint)))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sign(Path(shutil.copytree(str(files("edgepack_packager") / "demo_model"), tmp_path / "source")))


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "publisher.pub").write_text(signing.pem())
    return str(tmp_path / "publisher.pub")


def noted(source: Path, out: Path, key: str | None = None) -> list[str]:
    recipe = build(str(source), Recipe(("mlx",), ("f32",), unproven=True, source_key=key), out).manifest.producer.recipe
    notes = recipe.get("notes", [])
    assert isinstance(notes, list)
    return [each for each in notes if "sig" in each]


def test_the_key_that_signed_is_recorded(source: Path, key: str, tmp_path: Path) -> None:
    (told,) = noted(source, tmp_path / "out", key)
    assert told == (
        "The source is signed: model.sig has the digests of 9 files that were read, "
        f"and the ed25519 key sha256:{signing.key().public.fingerprint} made it."
    )


def test_without_a_key_digests_are_compared_and_nobody_is_named(source: Path, tmp_path: Path) -> None:
    (told,) = noted(source, tmp_path / "out")
    assert told.endswith("9 files that were read, and whose it is was not checked.")
    sign(source, hint=None)
    (told,) = noted(source, tmp_path / "again")
    assert told.endswith("and the identity in its certificate was not checked.")


def test_a_source_without_a_signature_says_nothing(source: Path, tmp_path: Path) -> None:
    (source / "model.sig").unlink()
    assert noted(source, tmp_path / "out") == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "LICENSE"])
def test_a_file_that_is_not_what_was_signed(source: Path, tmp_path: Path, name: str) -> None:
    sign(source, {name: "ab" * 32})
    with pytest.raises(SourceError, match=f"{name} of the source is not what was signed"):
        build(str(source), PLAIN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_signed_file_that_is_missing(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").unlink()
    with pytest.raises(SourceError, match=r"generation_config\.json was signed, and the source has none"):
        build(str(source), PLAIN, tmp_path / "out")


def test_a_file_that_was_not_signed(source: Path, key: str, tmp_path: Path) -> None:
    sign(source, {"chat_template.jinja": None})
    (told,) = noted(source, tmp_path / "out")
    assert told.endswith("It says nothing of chat_template.jinja.")
    with pytest.raises(SourceError, match=r"chat_template\.jinja of the source was not signed"):
        noted(source, tmp_path / "again", key)


def test_a_signature_that_nobody_understands(source: Path, key: str, tmp_path: Path) -> None:
    (source / "model.sig").write_bytes((source / "model.sig").read_bytes()[:99])
    (told,) = noted(source, tmp_path / "out")
    assert told.startswith("The source has a model.sig, with which nothing was compared: model.sig is no signature")
    with pytest.raises(SourceError, match=r"^model\.sig is no signature"):
        noted(source, tmp_path / "again", key)


def test_a_key_that_did_not_sign(source: Path, key: str, tmp_path: Path) -> None:
    Path(key).write_text(signing.pem("other"))
    with pytest.raises(SourceError, match=r"publisher\.pub did not sign the source"):
        noted(source, tmp_path / "out", key)
    Path(key).write_text("no key")
    with pytest.raises(UsageError, match=r"publisher\.pub is no public key"):
        noted(source, tmp_path / "out", key)
    (source / "model.sig").unlink()
    Path(key).write_text(signing.pem())
    with pytest.raises(SourceError, match=r"--source-key was given, and the source has no model\.sig"):
        noted(source, tmp_path / "out", key)


def test_the_command(source: Path, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(source), "-t", "mlx", "-q", "f32", "--unproven", "-o", str(tmp_path / "out")]
    assert main([*words, "--source-key", key, "--json"]) == 0
    told = capsys.readouterr()
    assert "made it" in told.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert "made it" in manifest["producer"]["recipe"]["notes"][-1]
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_signature_is_fetched_with_the_texts() -> None:
    assert needed.text(needed.seen({"model.sig", "config.json", "x/model.sig"})) == ["config.json", "model.sig"]
