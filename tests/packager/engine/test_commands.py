"""``edgepack engine list``, ``use`` and ``remove``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.cli import main
from edgepack.device.state import prefer, preferred
from edgepack_packager.engine import build as building
from edgepack_runtimes.gguf import GgufRuntime, library, selfcheck

VERSIONS = {"edgepack-llama": "0.3.36+this.g0a1b2c3d", "xllamacpp": "2026.10.11549"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine with our own engine and a wheel, and nothing preferred."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path))
    monkeypatch.setattr(library, "installed", lambda engine: VERSIONS.get(engine.distribution))
    monkeypatch.setattr(
        selfcheck,
        "verdict",
        lambda engine: (
            selfcheck.Verdict(("cpu",), engine.llama)
            if engine.distribution in VERSIONS
            else selfcheck.Verdict((), reason=f"{engine.distribution} is not installed.")
        ),
    )
    return


def used(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["engine", "list", "--json"]) == 0
    (name,) = [each["name"] for each in json.loads(capsys.readouterr().out)["engines"] if each["used"]]
    return str(name)


def test_the_list_says_what_is_here_what_runs_and_which_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[1:4]] == [
        ["*", "edgepack-llama", VERSIONS["edgepack-llama"], "runs", "on", "cpu"],
        ["llama-cpp-python", "-", "llama-cpp-python", "is", "not", "installed"],
        ["xllamacpp", VERSIONS["xllamacpp"], "runs", "on", "cpu"],
    ]


def test_the_list_says_which_variant_of_several_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERSIONS, "edgepack-llama", "0.3.36+arm64.g0a1b2c3d")
    found = selfcheck.Verdict(("cpu",), "0.5.0-dev+arm64.g0a1b2c3d.armv8.2_2")
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: found)
    assert main(["engine", "list"]) == 0
    own, _, wheel = capsys.readouterr().out.splitlines()[1:4]
    assert own.endswith("runs on cpu, its variant armv8.2_2")
    assert wheel.endswith("runs on cpu")


def test_a_preference_holds_until_it_is_freed(capsys: pytest.CaptureFixture[str]) -> None:
    assert used(capsys) == "edgepack-llama"
    assert main(["engine", "use", "xllamacpp"]) == 0
    assert used(capsys) == "xllamacpp"
    assert main(["engine", "list"]) == 0
    assert "edgepack engine use auto" in capsys.readouterr().out
    assert main(["engine", "use", "auto"]) == 0
    assert used(capsys) == "edgepack-llama"


def test_the_environment_stands_above_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    prefer("gguf", "edgepack-llama")
    monkeypatch.setenv("EDGEPACK_ENGINE_GGUF", "xllamacpp")
    assert used(capsys) == "xllamacpp"


def test_an_engine_that_does_not_run_or_is_unknown_is_not_preferred(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "use", "llama-cpp-python"]) == 1
    assert "llama-cpp-python is not installed" in capsys.readouterr().err
    assert main(["engine", "use", "ollama"]) == 2
    assert "edgepack-llama, llama-cpp-python, xllamacpp, auto" in capsys.readouterr().err
    assert preferred("gguf") is None


def test_a_preferred_engine_that_is_gone_is_a_reason_and_no_other_takes_its_place() -> None:
    prefer("gguf", "llama-cpp-python")
    support = GgufRuntime().probe(building.detect())
    assert support.devices == ()
    assert support.reason == (
        "llama-cpp-python is not installed. No other engine is tried; free the choice with: edgepack engine use auto."
    )


def test_remove_uninstalls_and_frees_the_choice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(building.programs, "to_end", lambda command: commands.append(command))
    prefer("gguf", "edgepack-llama")
    assert main(["engine", "remove"]) == 0
    assert commands[0][-3:] == ["--disable-pip-version-check", "--yes", "edgepack-llama"]
    assert preferred("gguf") is None
    monkeypatch.setattr(library, "installed", lambda engine: None)
    assert main(["engine", "remove"]) == 1
    assert "edgepack-llama is not installed" in capsys.readouterr().err


def test_an_engine_for_one_processor_is_what_the_wheel_would_be_better_as(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer("gguf", "xllamacpp")
    assert GgufRuntime().probe(building.detect()).better == "edgepack engine use auto"  # it is built already
    prefer("gguf", None)
    assert GgufRuntime().probe(building.detect()).better is None
    monkeypatch.delitem(VERSIONS, "edgepack-llama")
    assert GgufRuntime().probe(building.detect()).better == "edgepack engine build"
