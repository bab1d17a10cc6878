"""The bill of materials and the statement: what they say, by the published schema, and that nothing else is there."""

from __future__ import annotations

import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from models import make_llama

from edgepack.bundle import manifest as manifests
from edgepack.bundle import receipt as receipts
from edgepack.bundle.files import MANIFEST, Bundle, open_bundle
from edgepack.bundle.manifest import License, Manifest
from edgepack_packager.build import build
from edgepack_packager.licence import _SPDX
from edgepack_packager.provenance import bill, documents, listed, statement
from edgepack_packager.recipe import Recipe


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = make_llama(tmp_path_factory.mktemp("source") / "mine")
    recipe = Recipe(("gguf",), ("f32", "q4_0"), context=64, version="2.0", sequence=3)
    return build(str(source), recipe, tmp_path_factory.mktemp("out") / "mine.edgepack").open()


def read(bundle: Bundle, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bundle.read(name))
    return found


def faults(document: bytes) -> object:
    return JsonStrictValidator(SchemaVersion.V1_7).validate_str(document.decode())


def made_of(manifest: Manifest, **fields: object) -> Manifest:
    """The manifest before the documents were made, with other fields."""
    files = [file for file in manifest.files if file.path not in (bill.FILE, statement.FILE)]
    return msgspec.structs.replace(manifest, files=files, **fields)


def test_the_bill_keeps_to_the_published_schema(bundle: Bundle) -> None:
    assert faults(bundle.read(bill.FILE)) is None
    broken = read(bundle, bill.FILE)
    broken["metadata"]["component"]["sort"] = "model"
    assert faults(json.dumps(broken).encode()) is not None, "the validator looks"


@pytest.mark.parametrize("licence", [*_SPDX.values(), "LicenseRef-of-its-own", "LicenseRef-unknown"])
def test_every_licence_that_a_build_knows_keeps_to_the_schema(licence: str, bundle: Bundle) -> None:
    record = License(id=licence, files=[], url="https://a host/with spaces")
    assert faults(documents(made_of(bundle.manifest, license=record), None)[bill.FILE]) is None


def test_what_is_optional_keeps_to_the_schema(bundle: Bundle) -> None:
    manifest = bundle.manifest
    recipe = {**manifest.producer.recipe, "calibrate": "notes.txt", "calibrate_sha256": "cd" * 32}
    producer = msgspec.structs.replace(manifest.producer, recipe=recipe)
    source = msgspec.structs.replace(manifest.source, repository="owner/The_Model", revision="ab" * 20)
    unproven = [msgspec.structs.replace(each, proof=None) for each in manifest.variants]
    others = made_of(
        manifest, producer=producer, source=source, variants=unproven, draft="ef" * 32, parent="01" * 32, sequence=0
    )
    made = documents(others, None)
    assert faults(made[bill.FILE]) is None
    said = json.loads(made[bill.FILE])
    (ancestor,) = said["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["purl"] == "pkg:huggingface/owner/The_Model@" + "ab" * 20
    inputs = json.loads(made[statement.FILE])["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert inputs[0] == {"name": "mine", "uri": ancestor["purl"], "digest": {"gitCommit": "ab" * 20}}
    assert [each["name"] for each in inputs[-3:]] == [
        "calibrate notes.txt",
        "draft/manifest.json",
        "parent/manifest.json",
    ]


def test_the_bill_has_the_proofs_figures(bundle: Bundle) -> None:
    exact, few = read(bundle, bill.FILE)["components"][:2]
    assert (exact["name"], few["name"]) == ("gguf-f32", "gguf-q4_0")
    assert few["pedigree"]["notes"].startswith("Converted to gguf and quantised to q4_0, ")
    metrics = few["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    proof = bundle.manifest.variants[1].proof
    assert proof is not None
    assert {each["type"]: float(each["value"]) for each in metrics if each["slice"].startswith("gate: ")} == {
        gate.name: gate.value for gate in proof.gates
    }
    (on_text,) = (
        each for each in metrics if each["type"].startswith("KL") and each["slice"].endswith("tokens of text")
    )
    assert float(on_text["value"]) == proof.loss["text"].kl
    interval = on_text["confidenceInterval"]
    assert float(interval["lowerBound"]) < proof.loss["text"].kl < float(interval["upperBound"])
    assert any("held-out tokens of built-in" in each["slice"] for each in metrics)


def test_the_statement_names_every_file_with_its_digest(bundle: Bundle) -> None:
    said = read(bundle, statement.FILE)
    assert (said["_type"], said["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    subjects = {each["name"]: each["digest"]["sha256"] for each in said["subject"]}
    files = {name: file.sha256 for name, file in bundle.files().items()}
    assert {*files} - {*subjects} == {statement.FILE}
    assert {name: files[name] for name in subjects} == subjects
    definition = said["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"]["quants"] == ["f32", "q4_0"]
    assert definition["externalParameters"]["sequence"] == 3
    inputs = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    assert inputs == {file.path: file.sha256 for file in bundle.manifest.source.files}
    packages = {each["name"]: each["uri"] for each in said["predicate"]["runDetails"]["builder"]["builderDependencies"]}
    assert {"numpy", "xllamacpp"} <= packages.keys()


def test_no_time_no_host_and_no_path_is_in_them(bundle: Bundle) -> None:
    for name in (bill.FILE, statement.FILE):
        text = bundle.read(name).decode()
        assert str(bundle.path.parent) not in text
        assert not re.search(r"\d\d:\d\d|20\d\d-\d\d-\d\d", text)
        assert not platform.node() or f'"{platform.node()}"' not in text


def test_the_same_manifest_gives_the_same_documents_and_another_another_serial_number(bundle: Bundle) -> None:
    before = made_of(bundle.manifest)
    receipt = receipts.read(bundle)
    made = documents(before, receipt)
    assert {name: bundle.read(name) for name in made} == made
    assert listed(before, made) == manifests.decode(bundle.read(MANIFEST))
    other = documents(made_of(bundle.manifest, version="2.1"), receipt)
    serials = {json.loads(each[bill.FILE])["serialNumber"] for each in (made, other)}
    assert len(serials) == 2


def test_a_bundle_from_before_opens(bundle: Bundle, tmp_path: Path) -> None:
    old = shutil.copytree(bundle.path, tmp_path / "old")
    for name in (bill.FILE, statement.FILE):
        (old / name).unlink()
    (old / MANIFEST).write_bytes(manifests.encode(made_of(bundle.manifest)))
    assert open_bundle(old).manifest.name == "mine"
