"""Thoughts at the command line: dim before the answer on a terminal, nowhere in a pipe, a field of the JSON."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
import small_bundle

from edgepack import FakeRuntime, fake, runtime
from edgepack.bundle.manifest import CHAT_THINKING
from edgepack.bundle.thinking import Switch, Thinking
from edgepack.cli import main, talk
from edgepack.isolation import probing, process
from edgepack.text.tokenizer import Tokenizer

THINKING = Thinking(
    opening="<think>",
    closing="</think>",
    ending="\n</think>\n\n",
    skipped="<think>\n\n</think>\n\n",
    switch=Switch(variable="enable_thinking", on=True, off=False),
)
TEMPLATE = small_bundle.TEMPLATE + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
ENCODE = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False).encode


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small bundle whose model thinks, on a fake engine."""
    aside = ENCODE(THINKING.whole("I greet.", ""))
    fake = FakeRuntime([*aside, *ENCODE("Hello!"), 257], aside=len(aside), closed=ENCODE(THINKING.ending.lstrip()))
    monkeypatch.setattr(runtime, "names", lambda: ["fake"])
    monkeypatch.setattr(runtime, "find", lambda name: fake)
    monkeypatch.setattr(probing, "probe", lambda name, hardware, **asked: probing.ask(name, lambda _: fake, hardware))
    monkeypatch.setattr(process, "can_start", lambda: False)
    monkeypatch.setattr(small_bundle, "TEMPLATE", TEMPLATE)
    chat = {"roles": ["user", "assistant"], "date": None, "goldens": [], "thinking": msgspec.to_builtins(THINKING)}
    changes = {"chat": chat, "schema": {"version": 2, "features": [CHAT_THINKING]}, "generation": {"max_tokens": 99}}
    return str(small_bundle.write(tmp_path / "thinker", **changes))


def test_a_pipe_gets_the_answer_alone(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", bundle, "hi"]) == 0
    assert capsys.readouterr() == ("Hello!\n", "")
    assert main(["run", bundle, "hi", "--max-tokens", "12"]) == 0
    said = capsys.readouterr()
    assert said.out == "\n"
    assert "only a thought: try --thinking-tokens" in said.err


def test_a_terminal_shows_the_thought_dim(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for options, shown in (
        ([], "\x1b[2mI greet.\x1b[22m\n\nHello!\n"),
        (["--think"], "\x1b[2mI greet.\x1b[22m\n\nHello!\n"),
        (["--no-think"], "Hello!\n"),
        (["--thinking-tokens", "3"], "\x1b[2mI\x1b[22m\n\nHello!\n"),
        (["--max-tokens", "12"], "\x1b[2mI gr\x1b[22m\n"),
    ):
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert main(["run", bundle, "hi", *options]) == 0
        assert sys.stdout.getvalue() == shown  # type: ignore[attr-defined]
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["run", bundle, "hi"]) == 0
    assert sys.stdout.getvalue() == "I greet.\n\nHello!\n"  # type: ignore[attr-defined]


def test_json_has_both(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", bundle, "hi", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["reasoning"], report["text"]) == ("I greet.", "Hello!")
    assert report["usage"]["reasoning_tokens"] == len(ENCODE("<think>\nI greet.\n</think>"))


def test_what_cannot_be_is_refused(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, reason in (
        (["--raw", "--no-think"], "--no-think was given for a prompt without a chat template"),
        (["--no-think", "--thinking-tokens", "4"], "--thinking-tokens was given beside --no-think"),
        (["--thinking-tokens", "-4"], "--thinking-tokens is -4"),
    ):
        assert main(["run", bundle, "hi", *options]) == 2
        assert reason in capsys.readouterr().err
    plain = str(small_bundle.write(tmp_path / "plain"))
    assert main(["run", plain, "hi", "--think"]) == 2
    assert "does not think" in capsys.readouterr().err


def test_inspect_says_that_it_thinks(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", bundle]) == 0
    said = capsys.readouterr().out
    assert "unless told not to (--no-think), between '<think>' and '</think>'" in " ".join(said.split())
    assert main(["inspect", str(small_bundle.write(tmp_path / "plain"))]) == 0
    assert "thinking" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("taught", "said"),
    [('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "called in the form of Hermes (--tools)"), ("", "none")],
)
def test_inspect_says_whether_it_calls_tools(
    taught: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_bundle, "TEMPLATE", small_bundle.TEMPLATE + "{% if tools %}" + taught + "{% endif %}")
    assert main(["inspect", str(small_bundle.write(tmp_path / "one"))]) == 0
    assert f"\ntools {said}\n" in re.sub(" +", " ", capsys.readouterr().out)


def test_a_thought_that_the_model_ended_with_is_not_said_to_be_cut(
    bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "find", lambda name: FakeRuntime([*ENCODE("<think>\nI greet."), 257]))
    assert main(["run", bundle, "hi"]) == 0
    said = capsys.readouterr().err
    assert "only a thought: the model ended there. Try --no-think." in said


def test_a_chat_says_that_there_is_only_a_thought(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Typed:
        left = ["hi"]  # noqa: RUF012 - one test reads it

        def read(self) -> str:
            if not self.left:
                raise EOFError
            return self.left.pop()

    monkeypatch.setattr(talk, "_opened", lambda completing: (Typed(), ""))
    monkeypatch.setattr(talk, "as_found", nullcontext)
    with fake.model(says="Hello!", thinks="A greeting.") as model:
        talk.converse(model, {"max_tokens": 14})
    said = " ".join(capsys.readouterr().err.split())
    assert "only a thought: try /set thinking_tokens or a larger /set max_tokens." in said
