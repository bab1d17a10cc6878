"""A command that fails: one sentence, one JSON document where JSON was asked for, and the exit codes of the table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from terminal import Terminal

from edgepack import FakeRuntime, runtime
from edgepack.cli import faults, main, suggest
from edgepack.errors import BundleNotFoundError, EdgepackError, UsageError
from edgepack.fake import FakeSession
from edgepack.isolation import isolate, probing, process

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeRuntime], None]:
    """Put a fake engine in the place of the installed ones."""

    def put(fake: FakeRuntime) -> None:
        monkeypatch.setattr(runtime, "names", lambda: ["fake"])
        monkeypatch.setattr(runtime, "find", lambda name: fake)
        monkeypatch.setattr(probing, "probe", lambda name, hardware, **asked: fake.probe(hardware))
        monkeypatch.setattr(isolate, "IsolatedRuntime", lambda name: fake)
        monkeypatch.setattr(process, "can_start", lambda: False)

    put(FakeRuntime())
    return put


@pytest.fixture
def bundle(tmp_path: Path, use: Callable[[FakeRuntime], None]) -> str:
    return str(small_bundle.write(tmp_path / "small"))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Return the code of a command, the one JSON document on its standard output, and its standard error."""
    code = main(words)
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def planned(session: FakeSession) -> None:
    raise ZeroDivisionError("a planned fault")


def test_a_failure_is_json_where_json_was_asked_for(
    bundle: str, use: Callable[[FakeRuntime], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, type_, code in (
        (("inspect", f"{bundle}x"), "BundleNotFoundError", 1),
        (("frobnicate",), "UsageError", 2),
        (("bench", bundle, "--repeats", "0"), "UsageError", 2),
        (("bench", bundle, "--threads", "9999"), "UsageError", 2),
        (("run", bundle, "hi", "--backend", "tensorrt"), "UsageError", 2),
        (("run", bundle, "hi", "-c", "9000"), "ContextTooLargeError", 1),
    ):
        found, report, err = told(capsys, *words, "--json")
        error = report["error"]
        assert (found, error["type"], error["exit_code"]) == (code, type_, code), words
        hint = f"hint: {error['hint']}\n" if error["hint"] else ""
        assert err == f"error: {error['message']}\n{hint}"
        assert set(report) == {"error"}
    use(FakeRuntime(before_step=planned))
    code, report, _ = told(capsys, "run", bundle, "hi", "--json")
    assert (code, report["error"]["type"]) == (1, "ZeroDivisionError")


def test_what_was_found_before_a_failure_is_in_the_same_document(
    tmp_path: Path, use: Callable[[FakeRuntime], None], capsys: pytest.CaptureFixture[str]
) -> None:
    variant = small_bundle.variant("fake-q4", self_test={"ids": [1, 2, 3], "top1": [0, None, 0]})
    path = str(small_bundle.write(tmp_path / "small", [variant]))
    code, report, _ = told(capsys, "verify", path, "--replay", "--json")
    assert code == report["error"]["exit_code"] == 1
    assert [each["verdict"] for each in report["replays"]] == ["same", "same", "differs"]
    other = str(small_bundle.write(tmp_path / "other", [small_bundle.variant("gguf-q4")]))
    code, report, _ = told(capsys, "plan", other, "--json")
    assert (code, report["error"]["type"]) == (1, "EngineMissingError")
    assert [each["eligible"] for each in report["candidates"]] == [False]


def test_nothing_is_left_of_one_command_for_the_next(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", bundle, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "small"
    assert main(["inspect", bundle]) == 0
    assert "{" not in capsys.readouterr().out


def test_a_prompt_that_reads_like_the_option_is_a_prompt(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{bundle}x", "--", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_told_in_json_alone(
    bundle: str, use: Callable[[FakeRuntime], None], capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(FakeRuntime):
        def open(self, *arguments: Any) -> Any:
            raise KeyboardInterrupt

    use(Interrupted())
    code, report, err = told(capsys, "run", bundle, "hi", "--json")
    assert (code, report["error"]["type"], err) == (130, "KeyboardInterrupt", "")


def test_the_document_of_a_reader_that_left_is_written_nowhere(tmp_path: Path) -> None:
    path = small_bundle.write(tmp_path / "small")
    for words in (["inspect", str(path)], ["inspect", str(path), "--json"], ["inspect", "-h"]):
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run([sys.executable, "-m", "edgepack", *words], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (141, b""), words


def test_a_pager_that_is_left_early_hears_nothing(demo_bundle: Any) -> None:
    line = f"'{sys.executable}' -m edgepack run '{demo_bundle.path}' hi -b onnx --max-tokens 100 | head -c 1"
    ended = subprocess.run(["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.stdout[1:] in ("141\n", "0\n")  # 0 where the answer was in the pipe before the reader left


# The table


def codes(text: str) -> dict[int, str]:
    return {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)}


def test_the_documents_have_the_table_of_the_module() -> None:
    table = codes((faults.__doc__ or "").replace("``", "`"))
    assert set(table) == {0, 1, 2, faults.INTERRUPTED, faults.LEFT}
    assert codes(DOCS.read_text("utf-8")) == table


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgepackError("no"), 1),
        (UsageError("no"), 2),
        (OSError(28, "No space left on device"), 1),
        (MemoryError(), 1),
        (ValueError("a fault"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_the_code_of_an_error(error: BaseException, code: int) -> None:
    fault = faults.fault_of(error)
    assert fault.exit_code == code
    assert (fault.lines(False) == "") == (code in (130, 141))


# What may have been meant


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smal.edgepack", "Did you mean small.edgepack?"),
        ("small", "Did you mean small.edgepack?"),
        ("small.edgpack", "Did you mean small.edgepack?"),
        ("smal.Edgepak", "Did you mean small.edgepack?"),
        ("Small", "Did you mean small.edgepack?"),
        ("two words", "Did you mean 'two words.edgepack'?"),
        ("qwen3-0.6b", "Build it first: edgepack build qwen3-0.6b"),
        ("qwen3-0.6b.edgepack", "Build it first: edgepack build qwen3-0.6b"),
        ("Qwen/Qwen3-0.6B", "Build it first: edgepack build qwen3-0.6b"),
        ("qwen3-06b", "Did you mean qwen3-0.6b? Build it first: edgepack build qwen3-0.6b"),
        ("demo", "Make it first: edgepack demo"),
        ("mine", "It is a model that is yet to be packed: edgepack build mine"),
        ("demo.edgepack", "Make it first: edgepack demo"),  # and no smollm2.edgepack, which ends so too
        ("xyzzy", "Check the path."),
    ],
)
def test_a_bundle_that_is_not_there(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_bundle.write(tmp_path / "small.edgepack")
    small_bundle.write(tmp_path / "two words.edgepack")
    small_bundle.write(tmp_path / "smollm2.edgepack")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert main(["run", name, "hi"]) == 1
    assert capsys.readouterr().err.splitlines()[1] == f"hint: {hint}"


def test_a_command_that_is_misspelt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isnpect", "x"]) == 2
    assert "Did you mean 'inspect'?" in capsys.readouterr().err


def test_an_option_that_is_misspelt_is_offered_no_hidden_one(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", bundle, "hi", "--json-schem", "{}"]) == 2
    said = capsys.readouterr().err
    assert "No such option: --json-schem" in said
    assert "--json-schema" not in said


def test_a_hint_is_no_place_for_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def load(self) -> Any:
            raise ImportError("gone")

    monkeypatch.setattr(suggest, "entry_points", lambda group: [Broken()])
    assert suggest.bundle("xyzzy\0") is None
    error = BundleNotFoundError("There is no bundle.", hint="Check the path.")
    assert faults.fault_of(error).hint == "Check the path."


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_cuts_no_word_of_a_failure(columns: int) -> None:
    words = "xllamacpp 2026.10.11549 needs the system's libgomp.so.1, which is not installed; see --quant gguf:q5_k_m. "
    fault = faults.Fault("EdgepackError", (words * 3).strip(), (words * 2).strip(), 1)
    lines = fault.lines(False, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(lines) + "\n" == fault.lines(False).replace("\nhint", " hint")
    styled = re.sub(r"\x1b\[[0-9;]*m", "", fault.lines(True, columns))
    assert styled == fault.lines(False, columns)


def test_a_terminal_gets_a_failure_in_its_width(tmp_path: Path) -> None:
    terminal = Terminal([sys.executable, "-m", "edgepack", "build", "smolm2-135m"], {"TERM": "xterm"}, columns=60)
    try:
        code, shown = terminal.end()
    finally:
        terminal.close()
    assert code == 1
    assert max(map(len, shown.splitlines())) <= 60
    assert "`edgepack models` lists the catalogue." in " ".join(shown.split())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Ask for context=512 or less.", "Ask for --context 512 or less."),
        ("Go without one: draft=False.", "Go without one: --no-draft."),
        ("It was given beside thinking=False.", "It was given beside --no-think."),
        ("on_overflow='truncate_middle' or 'rolling' does.", "--on-overflow truncate_middle or 'rolling' does."),
        ("Ask for it by name: backend=mlx.", "Ask for it by name: --backend mlx."),
        ("max_tokens is 0.", "--max-tokens is 0."),
        ("thinking_tokens was given beside thinking=False.", "--thinking-tokens was given beside --no-think."),
        ("thinking was given, and it does not.", "--think/--no-think was given, and it does not."),
        ("json_schema and regex are given together.", "--schema and --regex are given together."),
        ("stop[0] is ''.", "--stop is ''."),
        ("Leave out date.", "Leave out --date."),
        ("threads cannot be 9999: there are 2 cores.", "--threads cannot be 9999: there are 2 cores."),
        ("tools[0].name is 'a'.", "tools[0].name is 'a'."),
        (
            "The context is 4. A date, a stop and a seed are words.",
            "The context is 4. A date, a stop and a seed are words.",
        ),
        ("x=3, /a/context=3 and pip install a==1 stay.", "x=3, /a/context=3 and pip install a==1 stay."),
    ],
)
def test_an_option_is_spelled_as_the_command_line_has_it(said: str, shown: str) -> None:
    fault = faults.fault_of(EdgepackError(said, hint=said))
    assert (fault.message, fault.hint) == (shown, shown)
