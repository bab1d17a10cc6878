"""A bundle built again from what it records: the same, another, or what is missing for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gguf_files import packed
from hub import Hub
from lora import pair, write_peft
from models import make_llama

from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import MANIFEST, open_bundle
from edgepack.bundle.manifest import Manifest
from edgepack.cli import main
from edgepack.errors import BuildError
from edgepack_packager.build import build
from edgepack_packager.rebuild import rebuild
from edgepack_packager.recipe import Recipe
from edgepack_packager.recorded import Given, recipe_of

TABLE = '["gguf-mine".forms]\n"layers.*.mlp.*" = "q8_0"\n'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("source") / "mine")


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "mine.edgepack"
    return build(str(source), Recipe(("gguf", "onnx"), ("q4",), unproven=True), out).path


def edited(bundle: Path, out: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """Return a copy of a bundle that says something else of itself."""
    shutil.copytree(bundle, out)
    manifest = change(manifests.decode((out / MANIFEST).read_bytes()))
    (out / MANIFEST).write_bytes(manifests.encode(manifest))
    return out


def with_producer(manifest: Manifest, **fields: object) -> Manifest:
    return msgspec.structs.replace(manifest, producer=msgspec.structs.replace(manifest.producer, **fields))


def test_everything_that_a_recipe_can_say_gives_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_llama(tmp_path / "small", seed=2, layers=1)
    adapter = write_peft(tmp_path / "adapter", pair("model.layers.0.self_attn.q_proj", 64, 64))
    (tmp_path / "terms").write_text("Mine.")
    (tmp_path / "table.toml").write_text(TABLE)
    recipe = Recipe(
        ("gguf", "onnx"),
        ("q8", "gguf:q4_0"),
        context=128,
        unproven=True,
        name="called",
        accept_licence=True,
        kv_cache="f16",
        draft=str(small),
        thinks=True,
        adapters=(f"{adapter}:0.5",),
        quality="plain",
        version="2.0",
        sequence=7,
        licence=str(tmp_path / "terms"),
    )
    built = build(str(source), recipe, tmp_path / "out")
    assert [variant.id for variant in built.manifest.variants] == ["gguf-q8_0", "gguf-q4_0", "onnx-int8-kv16"]
    elsewhere = tmp_path / "elsewhere"
    moved = shutil.copytree(source, elsewhere / "renamed")
    monkeypatch.chdir(tmp_path)
    found = rebuild(built.open(), Given(str(moved), ("adapter:0.5",)), elsewhere / "again")
    assert found.differing == ()
    assert found.same
    assert open_bundle(elsewhere / "again").id == built.id


def test_texts_and_forms_that_were_given_are_given_again(source: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = ["".join(map(chr, rng.integers(97, 123, 4))) for _ in range(600)]
    texts = {"notes.txt": words[:300], "judge.txt": words[300:]}
    for name, part in texts.items():
        (tmp_path / name).write_text(" ".join(part))
    (tmp_path / "table.toml").write_text(TABLE)
    asked = Recipe(
        ("gguf",),
        ("5bits",),
        context=64,
        calibrate=str(tmp_path / "notes.txt"),
        receipt=str(tmp_path / "judge.txt"),
        table=str(tmp_path / "table.toml"),
    )
    built = build(str(source), asked, tmp_path / "out")
    for name in texts:
        (tmp_path / name).rename(tmp_path / f"my-{name}")
    given = Given(str(source), calibrate=str(tmp_path / "my-notes.txt"), receipt=str(tmp_path / "my-judge.txt"))
    found = rebuild(built.open(), given)
    assert found.differing == ()
    assert found.same
    with pytest.raises(BuildError, match="is not the text that it was calibrated with"):
        rebuild(built.open(), Given(str(source), calibrate=given.receipt, receipt=given.receipt))


@pytest.mark.parametrize(("id", "text"), [("gguf-q4_k_m-cal", "built-in"), ("gguf-5bits", None)])
def test_the_built_in_text_is_asked_for_where_a_scheme_was_calibrated(
    id: str, text: str | None, bundle: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(bundle).manifest
    variants = [msgspec.structs.replace(manifest.variants[0], id=id)]
    found = msgspec.structs.replace(
        with_producer(manifest, recipe={**manifest.producer.recipe, "calibrate": "built-in", "unproven": 0}),
        variants=variants,
    )
    assert recipe_of(open_bundle(bundle), found, Given(), tmp_path).calibrate == text


def test_a_repository_is_fetched_at_its_revision_or_given_as_a_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub({"acme/model": source}) as hub:
        hub.use(monkeypatch, tmp_path / "home")
        built = build("acme/model", Recipe(("gguf",), ("q8",), unproven=True), tmp_path / "out")
        assert built.manifest.source.revision
        assert rebuild(built.open(), Given()).same
    assert rebuild(built.open(), Given(str(source))).same


def test_a_gguf_file_is_found_by_its_name(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(source, tmp_path / "files")
    built = build(str(file), Recipe(("onnx",), ("q8",), unproven=True), tmp_path / "out")
    monkeypatch.chdir(file.parent)
    assert rebuild(built.open(), Given()).same
    with pytest.raises(BuildError, match=r"config\.json of .* is not the file that it was made of"):
        rebuild(built.open(), Given(str(source)))


def test_the_folder_is_found_by_its_name(
    source: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(source.parent)
    assert main(["rebuild", str(bundle), "--check"]) == 0
    assert capsys.readouterr().out == f"same: every byte of sha256:{open_bundle(bundle).id}\n"
    assert [path.name for path in source.parent.iterdir()] == ["mine"]


def test_a_variant_that_is_not_in_this_copy_is_compared_all_the_same(
    source: Path, bundle: Path, tmp_path: Path
) -> None:
    part = shutil.copytree(bundle, tmp_path / "part")
    shutil.rmtree(part / "variants" / "gguf-q4_k_m")
    assert rebuild(open_bundle(part), Given(str(source))).same


def test_other_tools_are_named(source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = edited(bundle, tmp_path / "old", lambda found: with_producer(found, packages={"numpy": "1.0", "was": "2"}))
    assert main(["rebuild", str(old), "--check", "--source", str(source), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["differing"]) == ("differs", [MANIFEST])
    assert said["tools"]["numpy"] == {"recorded": "1.0", "here": np.__version__}
    assert said["tools"]["was"] == {"recorded": "2", "here": None}
    assert main(["rebuild", str(old), "--check", "--source", str(source)]) == 1
    out = capsys.readouterr()
    assert "manifest.json" in out.out
    assert "hint: Build with the recorded versions" in out.err


@pytest.mark.parametrize(
    ("recipe", "given", "told"),
    [
        ({}, Given(), "it was made of mine, which is in no repository, and not here"),
        ({"calibrate": "notes.txt", "calibrate_sha256": "0" * 64}, Given(), "its recipe names the text notes.txt"),
        ({"calibrate": "n", "calibrate_sha256": "0" * 64}, Given(calibrate="README"), "README cannot be read"),
        ({"receipt": "judge.txt"}, Given(), "its recipe names the text judge.txt"),
        ({"receipt": "../judge.txt"}, Given(receipt="x"), "its recipe names a text '../judge.txt'"),
        ({"adapters": ["mine"]}, Given(), "the adapter mine is not here"),
        ({"draft": 1}, Given(), "its draft model is in no repository"),
        ({"targets": 3}, Given(), "its recipe is recorded in a way unknown here"),
        ({"max_kl": "much"}, Given(), "its recipe is recorded in a way unknown here"),
    ],
)
def test_what_is_missing_is_named(
    recipe: dict[str, object], given: Given, told: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = edited(bundle, tmp_path / "b", lambda m: with_producer(m, recipe={**m.producer.recipe, **recipe}))
    with pytest.raises(BuildError, match=f"mine cannot be built again: {told}") as raised:
        rebuild(open_bundle(found), given)
    assert raised.value.hint


def test_another_source_is_refused_before_it_is_built(bundle: Path, tmp_path: Path) -> None:
    other = make_llama(tmp_path / "mine", seed=1)
    with pytest.raises(BuildError, match=r"model\.safetensors of .* is not the file that it was made of"):
        rebuild(open_bundle(bundle), Given(str(other)))


def test_a_part_points_to_its_whole(bundle: Path, tmp_path: Path) -> None:
    part = edited(bundle, tmp_path / "part", lambda found: msgspec.structs.replace(found, parent="ab" * 32))
    with pytest.raises(BuildError, match="sha256:abab"):
        rebuild(open_bundle(part), Given())


@pytest.mark.parametrize("options", [[], ["--check", "--out", "x"]])
def test_it_is_checked_or_kept(options: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rebuild", str(bundle), *options]) == 2
    assert "Give --check, or --out FOLDER." in capsys.readouterr().err
