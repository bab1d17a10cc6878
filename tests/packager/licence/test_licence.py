"""Licences: what a source says, what a build asks for, what a bundle carries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest
from models import make_llama

from edgepack.bundle.files import open_bundle
from edgepack.bundle.manifest import License, Obligation
from edgepack.errors import LicenceError, SourceError, UsageError
from edgepack_packager.build import build
from edgepack_packager.licence import Licence, carry, check, given, read_licence
from edgepack_packager.licence.terms import TERMS, terms_of
from edgepack_packager.recipe import Recipe

LLAMA = Licence("LicenseRef-llama3.2", ("LICENSE.txt", "USE_POLICY.md"))
LLAMA_NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
CHANGED = "The files below variants/ were changed: edgepack converted them from owner/model at 0123."
LLAMA_FILES = {
    "README.md": "---\nlicense: llama3.2\nextra_gated_prompt: >-\n  license: mit\n---\n# A card",
    "LICENSE.txt": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nand so on",
    "USE_POLICY.md": "Llama 3.2 Acceptable Use Policy",
}


def fill(folder: Path, contents: Mapping[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def carried(tmp_path: Path, contents: Mapping[str, str]) -> tuple[License, dict[str, str]]:
    """What a bundle gets of a source with these files: the manifest's record, and its files with their text."""
    bundle = fill(tmp_path / "bundle", {})
    source = fill(tmp_path / "source", contents)
    record = carry(read_licence(source), source, bundle, "owner/model at 0123", accepted=True)
    return record, {path.name: path.read_text("utf-8") for path in bundle.iterdir()}


# What a source says


@pytest.mark.parametrize(
    ("card", "link", "gated"),
    [
        ("license: gemma\nextra_gated_heading: Access\n", None, True),
        ("license: gemma\nextra_gated_fields:\n  Name: text\n", None, True),
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: https://host/LICENSE\n",
            "https://host/LICENSE",
            False,
        ),
        ("license: other\nlicense_link: LICENSE\n", None, False),
        ("license: mit\nmodel-index:\n  extra_gated_prompt: x\n", None, False),
    ],
)
def test_the_card_tells_the_link_and_the_gate(card: str, link: str | None, gated: bool, tmp_path: Path) -> None:
    found = read_licence(fill(tmp_path / "source", {"README.md": f"---\n{card}---\n"}))
    assert (found.link, found.gated) == (link, gated)


@pytest.mark.parametrize(
    ("title", "licence"),
    [
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "LicenseRef-llama3"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "LicenseRef-llama2"),
        ("Gemma Terms of Use\n", "LicenseRef-gemma"),
        ("TENCENT HUNYUAN COMMUNITY LICENSE AGREEMENT\n", "LicenseRef-tencent-hunyuan-community"),
    ],
)
def test_a_text_without_a_card_is_known_by_its_title(title: str, licence: str, tmp_path: Path) -> None:
    assert read_licence(fill(tmp_path / "source", {"LICENSE": title})).id == licence
    assert licence in TERMS


# What a build asks for


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0", "GPL-3.0", "CC-BY-NC-4.0", "LicenseRef-unknown"])
def test_most_licences_ask_for_nothing(licence: str) -> None:
    check(Licence(licence, ()), "m", "m", accepted=False)


@pytest.mark.parametrize(
    ("licence", "place"),
    [
        (LLAMA, "https://www.llama.com/llama3_2/license"),
        (Licence("LicenseRef-gemma", ()), "https://ai.google.dev/gemma/terms"),
        (Licence("LicenseRef-of-its-own", ("LICENSE", "NOTICE")), "LICENSE"),
        (Licence("LicenseRef-of-its-own", (), link="https://host/terms"), "https://host/terms"),
    ],
)
def test_an_agreement_asks_to_be_accepted(licence: Licence, place: str) -> None:
    with pytest.raises(LicenceError, match="must be accepted") as raised:
        check(licence, "my models/Llama", "Llama", accepted=False)
    assert f"({place})" in raised.value.message
    assert raised.value.hint is not None
    assert raised.value.hint.endswith("edgepack build 'my models/Llama' --accept-licence")
    check(licence, "my models/Llama", "Llama", accepted=True)


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "llama-3.2-1b-instruct", "LLAMA_mine", "Meta-Llama-3.2"])
def test_a_name_that_begins_with_llama(name: str) -> None:
    check(LLAMA, "m", name, accepted=True)


@pytest.mark.parametrize("name", ["mine", "my-llama", "TinyLlama"])
def test_a_name_that_does_not_begin_with_llama_is_refused(name: str) -> None:
    with pytest.raises(LicenceError, match="begin with 'Llama'") as raised:
        check(LLAMA, "folder", name, accepted=True)
    assert f"edgepack build folder --accept-licence --name Llama-{name}" in str(raised.value)


def test_llama_3_wants_its_number_in_the_name() -> None:
    llama_3 = Licence("LicenseRef-llama3", ())
    check(llama_3, "m", "Meta-Llama-3-8B", accepted=True)
    with pytest.raises(LicenceError, match="--name Llama-3-Llama-mine"):
        check(llama_3, "m", "Llama-mine", accepted=True)


# What a bundle carries


def test_llama_brings_its_texts_and_its_notice(tmp_path: Path) -> None:
    record, held = carried(tmp_path, LLAMA_FILES)
    assert held == LLAMA_FILES | {"NOTICE": f"{LLAMA_NOTICE}\n{CHANGED}\n"}
    assert record == License(
        id="LicenseRef-llama3.2",
        name="Llama 3.2 Community License Agreement",
        url="https://www.llama.com/llama3_2/license",
        files=["LICENSE.txt", "NOTICE", "USE_POLICY.md"],
        notice=LLAMA_NOTICE,
        obligations=[
            Obligation(kind="display", text="Built with Llama"),
            Obligation(kind="name", text="Llama"),
            Obligation(
                kind="policy",
                text="Use must follow the use policy.",
                url="https://www.llama.com/llama3_2/use-policy",
            ),
        ],
        accepted=True,
        gated=True,
    )


def test_a_notice_of_the_source_is_kept_and_continued(tmp_path: Path) -> None:
    record, held = carried(tmp_path, LLAMA_FILES | {"Notice.txt": "Their own words."})
    assert held["Notice.txt"] == f"Their own words.\n{LLAMA_NOTICE}\n{CHANGED}\n"
    assert "NOTICE" not in held
    assert "Notice.txt" in record.files


def test_a_notice_that_has_the_sentence_does_not_get_it_twice(tmp_path: Path) -> None:
    wrapped = LLAMA_NOTICE.replace("License, ", "License,\n")
    _, held = carried(tmp_path, LLAMA_FILES | {"NOTICE": wrapped})
    assert held["NOTICE"] == f"{wrapped}\n{CHANGED}\n"


def test_gemma_without_a_text_says_so(tmp_path: Path) -> None:
    record, held = carried(tmp_path, {"README.md": "---\nlicense: gemma\n---\n"})
    assert held["NOTICE"].startswith("Gemma is provided under and subject to the Gemma Terms of Use found at")
    assert [(each.kind, each.url) for each in record.obligations] == [
        ("policy", "https://ai.google.dev/gemma/prohibited_use_policy"),
        ("text", "https://ai.google.dev/gemma/terms"),
    ]


def test_apache_gets_its_standard_text(tmp_path: Path) -> None:
    record, held = carried(tmp_path, {"README.md": "---\nlicense: apache-2.0\n---\n"})
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in held["LICENSE"]
    assert held["NOTICE"] == f"{CHANGED}\n"
    assert (record.files, record.notice, record.obligations, record.accepted) == (
        ["LICENSE", "NOTICE"],
        None,
        [],
        False,
    )


def test_apache_with_a_text_keeps_that(tmp_path: Path) -> None:
    _, held = carried(tmp_path, {"LICENSE.md": "Apache License\nVersion 2.0", "README.md": "# Card"})
    assert set(held) == {"LICENSE.md", "README.md", "NOTICE"}


def test_mit_without_a_text_has_none_that_could_be_made_up(tmp_path: Path) -> None:
    record, held = carried(tmp_path, {"README.md": "---\nlicense: mit\n---\n"})
    assert set(held) == {"README.md"}
    assert [each.kind for each in record.obligations] == ["text"]


def test_a_source_that_states_nothing(tmp_path: Path) -> None:
    record, held = carried(tmp_path, {})
    assert (record.id, record.files, record.obligations, held) == ("LicenseRef-unknown", [], [], {})


def test_every_entry_can_be_shown() -> None:
    for name, terms in TERMS.items():
        assert terms_of(name) is terms
        assert terms.name
        assert not name.startswith("LicenseRef-") or terms.asks
    text = (files("edgepack_packager.licence") / "texts" / "Apache-2.0.txt").read_text()
    assert text.strip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text


# A licence that the builder gives


@pytest.mark.parametrize(
    ("text", "card", "licence"),
    [
        ("MIT License\n\nCopyright (c) 2026 Me", "", "MIT"),
        ("Mine. Do not copy.", "", "LicenseRef-my-model"),
        ("Mine. Do not copy.", "license: other\nlicense_name: mine-1.0\n", "LicenseRef-mine-1.0"),
        ("                    GNU GENERAL PUBLIC LICENSE", "license: gpl-3.0\n", "GPL-3.0"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "license: llama3.2\n", "LicenseRef-llama3.2"),
    ],
)
def test_a_given_licence_is_what_its_text_says(text: str, card: str, licence: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"README.md": f"---\n{card}---\n"})
    (tmp_path / "mine.txt").write_text(text)
    found = given(read_licence(source), tmp_path / "mine.txt", "my model")
    assert found.id == licence
    assert found.asks is (licence in TERMS and TERMS[licence].asks)
    record = carry(found, source, fill(tmp_path / "bundle", {}), "here", accepted=True)
    assert "LICENSE" in record.files
    assert (tmp_path / "bundle" / "LICENSE").read_text() == text
    assert "text" not in [each.kind for each in record.obligations]


@pytest.mark.parametrize(
    ("source", "text", "error", "told"),
    [
        ({"LICENSE.md": "MIT License"}, b"Mine.", UsageError, "has its licence in LICENSE.md"),
        ({"README.md": "---\nlicense: apache-2.0\n---\n"}, b"MIT License", UsageError, "card says Apache-2.0"),
        ({}, b" \n", SourceError, "has no text"),
        ({}, b"\xff\xfe", SourceError, "no text in UTF-8: see byte 0"),
        ({}, None, SourceError, "is no file"),
    ],
)
def test_what_cannot_be_given(
    source: Mapping[str, str], text: bytes | None, error: type[Exception], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.txt"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(error, match=told):
        given(read_licence(fill(tmp_path / "source", source)), file, "m")


# A whole build


ONNX = {"targets": ("onnx",), "quants": ("f32",)}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return fill(make_llama(tmp_path / "mine"), LLAMA_FILES)


def test_a_build_refuses_before_it_reads_a_weight(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").unlink()
    out = tmp_path / "out"
    with pytest.raises(LicenceError, match="must be accepted"):
        build(str(llama), Recipe(**ONNX), out)
    with pytest.raises(LicenceError, match="--name Llama-mine"):
        build(str(llama), Recipe(**ONNX, accept_licence=True), out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-a", "a\n"])
def test_a_name_that_is_no_file_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a bundle's name"):
        Recipe(**ONNX, name=name)


def test_an_accepted_licence_travels_with_the_bundle(llama: Path, tmp_path: Path) -> None:
    options = ["--target", "onnx", "--quant", "f32", "--accept-licence", "--name", "Llama-mine"]
    command = [sys.executable, "-m", "edgepack"]
    subprocess.run([*command, "build", str(llama), *options], cwd=tmp_path, capture_output=True, check=True)
    bundle = tmp_path / "Llama-mine.edgepack"
    assert (bundle / "NOTICE").read_text("utf-8").startswith(LLAMA_NOTICE)
    assert (bundle / "LICENSE.txt").read_bytes() == (llama / "LICENSE.txt").read_bytes()
    shown = subprocess.run([*command, "inspect", str(bundle)], capture_output=True, text=True, check=True).stdout
    told = " ".join(shown.split())
    assert (
        "LicenseRef-llama3.2 (LICENSE.txt, NOTICE, USE_POLICY.md), accepted by the builder, gated by its host" in told
    )
    assert "Show to users: Built with Llama" in told
    assert "https://www.llama.com/llama3_2/use-policy" in told
    assert "mine (a local folder)" in told


def test_a_release_of_ones_own_model(tmp_path: Path) -> None:
    source, mine = make_llama(tmp_path / "mine"), tmp_path / "terms.txt"
    mine.write_text("Mine. Ask me first.\n")
    options = ["--target", "onnx", "--quant", "f32", "--unproven", "--licence", str(mine)]
    release = ["--bundle-version", "2.1.0-rc1", "--sequence", "21"]
    command = [sys.executable, "-m", "edgepack"]
    subprocess.run([*command, "build", str(source), *options, *release], cwd=tmp_path, capture_output=True, check=True)
    bundle = open_bundle(tmp_path / "mine.edgepack")
    manifest = bundle.manifest
    assert (manifest.version, manifest.sequence, manifest.schema.features) == ("2.1.0-rc1", 21, ["sequence"])
    assert (manifest.license.id, manifest.license.files, manifest.license.accepted) == (
        "LicenseRef-mine",
        ["LICENSE"],
        False,
    )
    assert bundle.read("LICENSE") == mine.read_bytes()
    assert manifest.producer.recipe["licence"] == 1
    shown = subprocess.run([*command, "inspect", str(bundle.path)], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("mine 2.1.0-rc1, release 21\n")


@pytest.mark.parametrize("release", [{"version": ""}, {"version": "1 2"}, {"version": "v" * 65}, {"sequence": -1}])
def test_a_release_that_cannot_be_recorded(release: Mapping[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot be a bundle's"):
        Recipe(**ONNX, **release)
