"""What the site generates is whole, and what its pages say of files and reports is so."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import small_bundle

import edgepack
from edgepack.cli import main
from edgepack_packager.build import Built
from edgepack_packager.cli import engine as engine_command
from edgepack_packager.engine import build as engine_build
from edgepack_packager.engine.wheel import Facts
from edgepack_ship.incoming import Folder
from edgepack_ship.packing import pack
from edgepack_ship.parts import Part
from edgepack_ship.signing import keys
from edgepack_ship.store.install import install
from edgepack_ship.store.place import Store

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ci" / "site"))

import pages  # noqa: E402
import reports  # noqa: E402

FILES = [place for folder in ("sdk", "runtimes", "packager") for place in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("kind", pages.error_classes(), ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_means_and_what_to_do(kind: type[edgepack.EdgepackError]) -> None:
    meaning, *rest = (inspect.getdoc(kind) or "").split("\n\n")
    assert meaning
    assert kind is edgepack.EdgepackError or any(each.startswith(pages.NEXT_STEP) for each in rest)


def test_every_error_is_on_its_page() -> None:
    shown = set(re.findall(r"^## (\w+)$", pages.errors_page(), re.M))
    assert {name for name, home in edgepack._HOME.items() if home == "errors"} <= shown


def test_every_name_is_on_its_page() -> None:
    shown = set(re.findall(r"^::: edgepack\..*\.(\w+)$", pages.names(), re.M))
    assert {*edgepack.__all__} - {"__version__"} == shown | {each.__name__ for each in pages.error_classes()}


def test_every_command_and_report_is_on_its_page() -> None:
    page = pages.commands()
    shown = set(re.findall(r"^## edgepack ([\w -]+)$", page, re.M))
    assert set(reports.REPORTS) < shown
    assert {"engine build", "demo"} < shown
    assert {*re.findall(r"\(schemas/([\w-]+)\.json\)", page)} == {each.replace(" ", "-") for each in reports.REPORTS}
    sections = dict(re.findall(r"^## edgepack ([\w -]+)$(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert {name for name, section in sections.items() if "`--json`" in section} == {*reports.REPORTS}


def test_links_stay_within() -> None:
    text = "[a](../x/y.py) [b](sdk.md#types) [c](https://example.org) [d](../docs/proof.md)"
    assert pages.within(text, "sources.md") == text.replace("[a](../x/y.py)", "a (`x/y.py`)")


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<a href="https://example.org">a link</a> <link href="assets/main.css"> <img src="fidelity.svg">', 0),
        ('<script src="https://cdn.example.org/x.js"></script>', 1),
        ('<link rel=stylesheet href=//fonts.example.org/css> <img alt="" src="http://example.org/x.png">', 2),
    ],
)
def test_what_a_page_fetches_is_found(html: str, count: int) -> None:
    assert len(pages.fetched(html)) == count


def test_the_state_page_names_what_is_kept() -> None:
    page = (ROOT / "docs" / "state.md").read_text("utf-8")
    kept = {name for place in FILES for name in re.findall(r'state_folder\(\) / "([\w.-]+)"', place.read_text("utf-8"))}
    named = {name for place in FILES for name in re.findall(r'"(EDGEPACK_[A-Z]+)_?"', place.read_text("utf-8"))}
    assert {"findings", "chats"} < kept
    assert {"EDGEPACK_STATE", "EDGEPACK_CACHE"} < named
    assert [name for name in sorted(kept | named - INTERNAL) if f"`{name}" not in page] == []


INTERNAL = {"EDGEPACK_PROBING"}
"""Between edgepack's own processes."""


REPORTS = {
    "inspect": "inspect BUNDLE",
    "quality": "quality BUNDLE",
    "build": "build demo --target gguf --out OUT",
    "mirror": "mirror BUNDLE --out WWW",
    "verify": "verify BUNDLE --replay",
    "pack": "pack BUNDLE --out OUT.tar",
    "unpack": "unpack FILE --out OUT.again",
    "diff": "diff BUNDLE BUNDLE --out OUT.delta",
    "patch": "patch BUNDLE OUT.delta --out OUT.patched",
    "split": "split BUNDLE --variant gguf-f32 --out OUT.part",
    "export": "export BUNDLE --to llamacpp --out OUT.export",
    "warm": "warm BUNDLE --system PROMPT --variant gguf-q4_k_m --out OUT.warm",
    "install": "install FILE --name packed --store SHELF",
    "list": "list --all --store SHELF",
    "use": "use small ID --store SHELF",
    "rollback": "rollback small --store SHELF",
    "remove": "remove small --store SHELF",
    "gc": "gc --store SHELF",
    "plan": "plan BUNDLE",
    "run": "run BUNDLE Hello --max-tokens 3 --logprobs",
    "replay": "replay RESULT",
    "bench": "bench BUNDLE --backend gguf --prompt-tokens 4 --decode-tokens 2 --repeats 1",
    "eval": "eval BUNDLE --text TEXT --variant gguf-q4_k_m --against-variant gguf-f32",
    "compare": "compare BUNDLE BUNDLE --variant-a gguf-q4_k_m --variant-b gguf-f32 --prompts TEXT --max-tokens 3",
    "doctor": "doctor",
    "engine list": "engine list",
    "models": "models",
    "fit": "fit demo --memory 4GB",
    "keygen": "keygen --out OUT",
    "sign": "sign COPY --key KEY",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Built) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text").write_text("Edgepack packs small language models.\n")
    (folder / "prompt").write_text("Be brief, and kind. " * 40)
    with edgepack.load(demo_bundle.path) as model:
        (folder / "result").write_text(json.dumps(model.generate("Hello", max_tokens=3).to_dict()))
    keys.make("ed25519").write(folder / "own")
    small_bundle.write(folder / "copy")
    pack(Folder(demo_bundle.path), folder / "file", ["gguf-f32"])
    store = Store(folder / "shelf")
    for incoming in (Folder(demo_bundle.path), Part(demo_bundle.path, ["gguf-f32"])):
        install(store, incoming, "small", ["gguf-f32"])
    named = {
        name: str(folder / name.lower()) for name in ("TEXT", "PROMPT", "RESULT", "FILE", "OUT", "SHELF", "WWW", "COPY")
    }
    return named | {"BUNDLE": str(demo_bundle.path), "ID": demo_bundle.id, "KEY": str(folder / "own.key")}


@pytest.mark.parametrize("command", REPORTS)
def test_a_report_is_as_its_schema_says(
    command: str, texts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        re.sub("BUNDLE|TEXT|PROMPT|RESULT|FILE|OUT|SHELF|WWW|ID|COPY|KEY", lambda found: texts[found[0]], word)
        for word in REPORTS[command].split()
    ]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    jsonschema.validate(json.loads(printed), reports.schema_of(command))


def test_the_report_of_a_compiled_engine_is_as_its_schema_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = dict.fromkeys(
        ("source", "sha256", "llama", "ggml", "processor", "what", "system", "machine", "compiler"), "a"
    )
    facts = Facts(**said, accelerators=("cuda",), settings={"GGML_AVX2": "ON"})
    for wheel, installed in ((tmp_path / "a.whl", False), (None, True)):
        built = engine_build.Built(wheel, installed, "1", facts, tmp_path / "log")
        monkeypatch.setattr(engine_build, "build", lambda *given, built=built, **named: built)
        monkeypatch.setattr(engine_command, "_checked", lambda version: True)
        assert main(["engine", "build", "--json"]) == 0
        jsonschema.validate(json.loads(capsys.readouterr().out), reports.schema_of("engine build"))


def test_a_field_that_no_schema_knows_is_found() -> None:
    schema: dict[str, Any] = reports.schema_of("models")
    jsonschema.validate({"models": []}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"models": [], "more": 1}, schema)
