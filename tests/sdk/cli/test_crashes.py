"""Commands whose engine crashes or hangs: they end with a sentence, since they run it in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import broken_runtimes
import pytest
import small_bundle

from edgepack.cli import main
from edgepack.isolation import isolate
from edgepack.measuring import bench
from edgepack.tuning import tune

FEW = ("--prompt-tokens", "4", "--decode-tokens", "2", "--repeats", "1")
COMMANDS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    "verify": lambda bundle, text: ("verify", bundle, "--replay"),
    "bench": lambda bundle, text: ("bench", bundle, *FEW),
    "eval": lambda bundle, text: ("eval", bundle, "--text", text),
    "compare": lambda bundle, text: ("compare", bundle, bundle, "--prompts", text),
    "tune": lambda bundle, text: ("tune", bundle, "--quick"),
}


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], str]:
    """Run a command on a bundle of a broken runtime, and return what it says on standard error and output."""
    broken_runtimes.register(tmp_path / "site", monkeypatch)
    text = tmp_path / "text"
    text.write_text("hello world")

    def run(command: str, runtime: str) -> str:
        test = {"ids": [1, 2, 3], "top1": [0, 0, 0]}
        variant = small_bundle.variant("x-q4", runtime=runtime, self_test=test)
        bundle = small_bundle.write(tmp_path / "small", [variant])
        assert main(COMMANDS[command](str(bundle), str(text))) == 1
        said = capsys.readouterr()
        assert said.err.count("error:") == 1
        assert "internal error" not in said.err
        return said.err + said.out

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_is_a_sentence(command: str, ask: Callable[[str, str], str]) -> None:
    said = " ".join(ask(command, "open-aborts").split())
    assert "SIGABRT" in said
    assert "ENGINE_ASSERT" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hang_is_a_sentence(command: str, ask: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    soon = partial(isolate.IsolatedRuntime, timeout_s=1.0, start_timeout_s=1.0)
    monkeypatch.setattr(isolate, "IsolatedRuntime", soon)
    monkeypatch.setattr(bench, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(tune, "QUICK", tune.replace(tune.QUICK, trial_s=1.0))
    assert "within 1 s" in ask(command, "open-hangs")
