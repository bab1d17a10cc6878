"""Variants that are added to a packed model: beside the old ones, which stay as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from models import make_llama

from edgepack.bundle import manifest as manifests
from edgepack.bundle import receipt as receipts
from edgepack.bundle.files import MANIFEST, Bundle, open_bundle
from edgepack.cli import main
from edgepack.errors import BuildError, BundleDamagedError, UsageError
from edgepack_packager.adding import Wanted, _receipt, add
from edgepack_packager.build import Built, VariantsFailedError, build
from edgepack_packager.progress import Silent
from edgepack_packager.provenance import bill, statement
from edgepack_packager.recipe import Recipe
from edgepack_packager.recorded import Given

Q8 = Wanted(("gguf",), ("q8",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("source") / "mine")


@pytest.fixture(scope="module")
def given(source: Path) -> Given:
    return Given(str(source))


@pytest.fixture(scope="module")
def old(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    recipe = Recipe(("gguf",), ("f16",), context=64, version="2.0", sequence=4)
    return build(str(source), recipe, tmp_path_factory.mktemp("old") / "mine.edgepack").open()


@pytest.fixture(scope="module")
def more(old: Bundle, given: Given, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return add(old, Wanted(("gguf",), ("f16", "5bits")), given, tmp_path_factory.mktemp("more") / "more.edgepack")


@pytest.fixture(scope="module")
def unproven(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = make_llama(tmp_path_factory.mktemp("small") / "small", seed=2, layers=1)
    recipe = Recipe(("gguf",), ("f16",), context=64, unproven=True, draft=str(small))
    return build(str(source), recipe, tmp_path_factory.mktemp("unproven") / "mine.edgepack").path


def test_the_old_variants_are_as_they_were(old: Bundle, more: Built) -> None:
    found = open_bundle(more.path)
    assert [variant.id for variant in found.manifest.variants] == ["gguf-f16", "gguf-5bits"]
    assert found.manifest.variants[0] == old.manifest.variants[0]
    name = "variants/gguf-f16/model.gguf"
    assert (found.path / name).stat().st_nlink == 1
    assert found.files()[name] == old.files()[name]
    assert found.files()["evidence/gguf-f16.json"] == old.files()["evidence/gguf-f16.json"]
    assert [path.name for path in more.path.parent.iterdir()] == ["more.edgepack"]


def test_the_new_bundle_names_the_old_and_keeps_its_release(old: Bundle, more: Built) -> None:
    manifest = more.manifest
    assert (manifest.parent, manifest.version, manifest.sequence) == (old.id, "2.0", 4)
    assert manifest.schema.features == ["loss", "sequence", "parent"]
    assert manifest.context.verified == 64
    assert manifest.producer.recipe["quants"] == ["f16", "5bits"]
    assert manifest.license == old.manifest.license


def test_the_new_variant_is_proven_and_judged_by_the_same_text(old: Bundle, more: Built) -> None:
    found = open_bundle(more.path)
    assert found.manifest.variants[1].proof is not None
    assert "recipe.toml" in found.files()
    before, now = receipts.read(old), receipts.read(found)
    assert before is not None
    assert now is not None
    assert [each.variant for each in now.variants] == ["gguf-f16", "gguf-5bits"]
    assert now.of("gguf-f16") == before.of("gguf-f16")


def test_the_documents_are_of_the_whole(old: Bundle, more: Built) -> None:
    found = open_bundle(more.path)
    materials = found.read(bill.FILE)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(materials.decode()) is None
    assert [each["name"] for each in json.loads(materials)["components"][:2]] == ["gguf-f16", "gguf-5bits"]
    said = json.loads(found.read(statement.FILE))
    assert {each["name"] for each in said["subject"]} == {*found.files()} - {statement.FILE}
    inputs = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert inputs[-1] == {"name": "parent/manifest.json", "digest": {"sha256": old.id}}


def test_a_bundle_may_be_replaced_by_what_it_becomes(
    unproven: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(unproven, tmp_path / "mine.edgepack")
    before, draft = open_bundle(bundle).id, open_bundle(bundle).draft
    asked = ["add", str(bundle), "-t", "gguf", "-q", "q8", "-o", str(bundle), "--source", str(source)]
    assert main(asked) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*asked, "--force", "--sequence", "9", "--bundle-version", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["parent"], said["sequence"], said["version"]) == (before, 9, "3")
    assert draft is not None
    assert open_bundle(bundle).draft == draft
    found = open_bundle(bundle).manifest
    assert [variant.proof is None for variant in found.variants] == [True, False]
    assert found.context.verified == 0, "the old variant is unproven"


def test_what_is_there_is_not_built_again(unproven: Path, given: Given, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gguf-f16 is in the bundle already"):
        add(open_bundle(unproven), Wanted(("gguf",), ("f16",)), given, tmp_path / "out")


def test_a_part_is_not_added_to(unproven: Path, given: Given, tmp_path: Path) -> None:
    part = shutil.copytree(unproven, tmp_path / "part")
    shutil.rmtree(part / "variants" / "gguf-f16")
    with pytest.raises(BuildError, match="part lacks gguf-f16 in this copy"):
        add(open_bundle(part), Q8, given, tmp_path / "out")


@pytest.mark.parametrize(
    ("card", "told"), [("---\nlicense: mit\n---\n", "license"), ("A card.", r"README\.md")], ids=["licence", "card"]
)
def test_a_source_that_reads_otherwise_now_is_refused(
    card: str, told: str, unproven: Path, source: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(source, tmp_path / "mine")
    (changed / "README.md").write_text(card)
    with pytest.raises(BuildError, match=f"mine is packed otherwise now, by edgepack .*: {told} is not what it was"):
        add(open_bundle(unproven), Q8, Given(str(changed)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_old_variant_is_found_while_it_is_copied(unproven: Path, given: Given, tmp_path: Path) -> None:
    bundle = shutil.copytree(unproven, tmp_path / "mine.edgepack")
    payload = bundle / "variants" / "gguf-f16" / "model.gguf"
    payload.write_bytes(payload.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleDamagedError, match="its sha256 differs"):
        add(open_bundle(bundle, verify="sizes"), Q8, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_that_fails_adds_nothing_and_leaves_its_figures(unproven: Path, given: Given, tmp_path: Path) -> None:
    with pytest.raises(VariantsFailedError, match="Nothing is sealed") as raised:
        add(open_bundle(unproven), Wanted(("gguf",), ("q4_0",), max_kl=0.0), given, tmp_path / "out.edgepack")
    assert [path.name for path in raised.value.evidence.iterdir()] == ["gguf-q4_0.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_one_bundle_is_calibrated_with_one_text(unproven: Path, source: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(unproven, tmp_path / "b")
    manifest = manifests.decode((bundle / MANIFEST).read_bytes())
    recipe = {**manifest.producer.recipe, "calibrate": "notes.txt", "calibrate_sha256": "ab" * 32}
    producer = msgspec.structs.replace(manifest.producer, recipe=recipe)
    (bundle / MANIFEST).write_bytes(manifests.encode(msgspec.structs.replace(manifest, producer=producer)))
    with pytest.raises(UsageError, match=r"was calibrated with notes\.txt, and these would be with built-in"):
        add(open_bundle(bundle), Wanted(("gguf",), ("4.5bits",)), Given(str(source)), tmp_path / "out")


def test_figures_on_another_text_do_not_join(more: Built) -> None:
    receipt = receipts.read(more.open())
    assert receipt is not None
    other = msgspec.structs.replace(receipt, text=msgspec.structs.replace(receipt.text, sha256="ab" * 32))
    assert _receipt(receipt, other, Silent()) == receipt
    assert _receipt(None, other, Silent()) == other
    assert _receipt(receipt, None, Silent()) == receipt
