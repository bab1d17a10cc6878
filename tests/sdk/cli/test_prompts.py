"""What ``edgepack run`` says beside the prompt: a system prompt, variables, a date, tools, and a form of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_bundle

from edgepack import FakeRuntime, runtime
from edgepack.cli import main, textfile
from edgepack.errors import UsageError
from edgepack.isolation import probing, process
from edgepack.text.tokenizer import Tokenizer

ALPHABET = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False)
TEMPLATE = (
    "{{ strftime_now('%d %B %Y') }};{{ mood | default('-') | tojson }};"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% for tool in tools or [] %}{{ tool.function.name }}"
    '{# <tool_call>\n{"name": "", "arguments": {}}</tool_call> #}{% endfor %}<|assistant|>'
)
CHAT = {"roles": ["system", "user", "assistant"], "date": {"day": "2024-07-26", "policy": "pinned"}, "goldens": []}
Say = Callable[..., None]
Run = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Let the engine answer so, whatever is asked."""

    def put(answer: str) -> None:
        fake = FakeRuntime([*ALPHABET.encode(answer), 257])
        monkeypatch.setattr(runtime, "names", lambda: ["fake"])
        monkeypatch.setattr(runtime, "find", lambda name: fake)
        monkeypatch.setattr(probing, "probe", lambda name, hardware, **asked: fake.probe(hardware))

    put("Hello!")
    return put


@pytest.fixture
def bundle(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(small_bundle, "TEMPLATE", TEMPLATE)
    return str(small_bundle.write(tmp_path / "small", chat=CHAT, generation={"max_tokens": 200}))


@pytest.fixture
def run(bundle: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run with these words and return the prompt that the engine got."""

    def call(*words: str) -> str:
        assert main(["run", bundle, "hi", "--json", *words]) == 0
        ids = json.loads(capsys.readouterr().out)["repro"]["prompt_ids"]
        names = {id: name for name, id in zip(small_bundle.WORDS, range(256, 260), strict=False)}
        return "".join(f"[{names[id]}]" if id in names else ALPHABET.decode([id]) for id in ids)

    return call


def test_a_system_prompt_begins(run: Run, tmp_path: Path) -> None:
    assert run("--system", "Be brief.").endswith("[<|user|>]hi[<|assistant|>]")
    assert "<|system|>Be brief." in run("--system", "Be brief.")
    (tmp_path / "system.txt").write_text("Be long.\nReally.\n")
    assert "<|system|>Be long.\nReally.[" in run("--system-file", str(tmp_path / "system.txt"))
    assert "system" not in run()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("mood=glad", '"glad"'),
        ("mood=true", "true"),
        ("mood=True", '"True"'),
        ("mood=3", "3"),
        ('mood="3"', '"3"'),
        ("mood=", '""'),
        ("mood=a=b", '"a=b"'),
        ('mood=[1, {"a": null}]', '[1, {"a": null}]'),
        ("mood=NaN", '"NaN"'),
    ],
)
def test_a_variable_is_json_or_text(run: Run, word: str, told: str) -> None:
    assert f";{told};" in run("--var", word)


def test_a_date_is_printed(run: Run) -> None:
    assert run("--var", "mood=a").startswith("26 July 2024;")
    assert run("--var", "mood=a", "--date", "2030-01-02").startswith("02 January 2030;")


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def test_a_call_is_printed_as_a_line_of_json(
    bundle: str, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "weather", "description": "It.", "parameters": schema}
    file = tmp_path / "tools.json"
    ask = ("run", bundle, "hi", "--var", "mood=a", "--tools", str(file))
    told = {"name": "weather", "arguments": {"city": "Rome"}, "id": None}
    for written in (tool, [tool], [{"type": "function", "function": tool}]):
        file.write_text(json.dumps(written))
        for answer, before in ((CALL, ""), (f"Look: {CALL}", "Look:\n")):
            say(answer)
            assert main(ask) == 0
            out = capsys.readouterr().out
            assert out.startswith(before)
            assert json.loads(out.removeprefix(before)) == told
            assert out.count("\n") == before.count("\n") + 1
    say(CALL * 2)
    assert main(ask) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [told, told]
    say("None.")
    assert main(ask) == 0
    assert capsys.readouterr().out == "None.\n"


def test_a_call_that_is_none_is_shown_as_the_model_wrote_it(
    bundle: str, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tools.json"
    file.write_text('{"name": "weather"}')
    answer = 'Look: <tool_call>{"name": "weather", "arguments": {'
    say(answer)
    ask = ["run", bundle, "hi", "--var", "mood=a", "--tools", str(file)]
    assert main(ask) == 1
    shown = capsys.readouterr()
    assert shown.out == answer + "\n"
    assert shown.err.startswith("error: A tool call is not JSON")
    assert main([*ask, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["text"] == answer
    assert report["error"]["type"] == "ToolCallError"


def test_a_schema_is_given_by_either_name(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"enum": ["yes"]}')
    for words in (("--schema", '{"enum": ["yes"]}'), ("--schema", str(file)), ("--json-schema", str(file))):
        assert main(["run", bundle, "hi", "--raw", *words]) == 0
        assert capsys.readouterr().out == '"yes"\n'
    assert main(["run", "-h"]) == 0
    assert "--json-schema" not in capsys.readouterr().out


def test_compare_asks_on_the_day_that_is_given(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "can_start", lambda: False)
    changed = Path(bundle) / "manifest.json"
    passed = json.loads(changed.read_text())
    passed["chat"]["date"]["policy"] = "passed"
    changed.write_text(json.dumps(passed))
    monkeypatch.setattr(small_bundle, "TEMPLATE", TEMPLATE.partition(";")[2])
    plain = str(small_bundle.write(tmp_path / "plain", chat={**CHAT, "date": None}))
    (tmp_path / "asked.txt").write_text("hi")
    ask = ["compare", bundle, plain, "--prompts", str(tmp_path / "asked.txt"), "--json"]
    assert main(ask) == 2
    assert "Pass it: --date YYYY-MM-DD" in capsys.readouterr().err
    assert main([*ask, "--date", "2026-02-03"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert ALPHABET.decode(pair["a"]["repro"]["prompt_ids"]).startswith("03 February 2026;")
    for words, why in (([plain, plain], "no chat template here prints a day"), ([bundle, plain, "--raw"], "without a")):
        assert main(["compare", *words, *ask[3:], "--date", "2026-02-03"]) == 2
        assert "--date was given" in (said := capsys.readouterr().err)
        assert why in said


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("--system", "a", "--system-file", "b"), "--system was given beside --system-file"),
    (("--schema", "{}", "--json-schema", "{}"), "--schema was given beside --json-schema"),
    (("--schema", "{}", "--regex", "a"), "regex"),
    (("--raw", "--system", "a"), "--system was given for a prompt without a chat template"),
    (("--raw", "--var", "mood=a"), "--var was given for a prompt without"),
    (("--raw", "--date", "2030-01-02"), "--date was given for a prompt without"),
    (("--logprobs",), "--logprobs was given without --json"),
    (("--n-best", "2"), "--n-best was given without --json"),
    (("--var", "mood"), "--var mood sets nothing"),
    (("--var", "=a"), "--var =a sets nothing"),
    (("--var", "mood=1", "--var", "mood=2"), "--var sets mood twice"),
    (("--var", "mood={a}"), "The value of --var mood is no JSON"),
    (("--var", "weather=a"), "reads no variable 'weather'"),
    (("--date", "tomorrow"), "tomorrow"),
    (("--system-file", "/none"), "/none cannot be read"),
    (("--tools", "/none"), "/none cannot be read"),
    (("--threads", "9999"), "threads cannot be 9999"),
    (("--threads", "0"), "threads cannot be 0"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_would_be_ignored_or_is_wrong_is_refused(
    bundle: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", bundle, "hi", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_a_bundle_without_a_template_takes_none_of_it(
    tmp_path: Path, say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(small_bundle.write(tmp_path / "plain", chat=None))
    assert main(["run", path, "hi", "--system", "a"]) == 2
    assert "Leave it out: this bundle continues texts." in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "nothing", '{"a": NaN', "[" * 100_000])
def test_a_file_of_tools_is_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(text)
    with pytest.raises(UsageError, match="is no JSON"):
        textfile.tools(tmp_path / "tools.json")


def test_a_file_of_tools_that_is_not_there_is_no_broken_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file or directory\.$"):
        textfile.tools(tmp_path / "none.json")


@pytest.mark.parametrize("given", ['{"type": "integer"', "schema.json"])
def test_a_schema_that_is_no_json_is_told_in_words_of_the_command_line(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text("{,}")
    with pytest.raises(UsageError, match=r"^(The schema|schema\.json) is no JSON: ") as caught:
        textfile.schema(given)
    assert caught.value.hint == "Give a JSON schema in braces, or its file."


def test_a_variable_keeps_its_type() -> None:
    words = ["a=1", "b=x", "c=false", "d=null", "e=1.5"]
    found: dict[str, Any] | None = textfile.variables(words)
    assert found == {"a": 1, "b": "x", "c": False, "d": None, "e": 1.5}
    assert textfile.variables(None) is None
