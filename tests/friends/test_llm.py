"""The plug-in of `llm`, in the real `llm`: as its users type it, and as its Python is called."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm
import pytest
from serving import HERMES, Serving, serving

from edgepack import fake
from edgepack.cli import main
from edgepack.errors import EdgepackError
from edgepack_llm import asked

CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Rome"}}</tool_call>'


def weather(place: str) -> str:
    """The weather of a place."""
    return f"Rain in {place}."


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user of `llm`, and a store of bundles with nothing in it."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("EDGEPACK_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    models = {
        "fake": lambda: fake.model(says="Good day!", thinks="A greeting."),
        "calling": lambda: fake.model(says=CALL, template=HERMES),
    }
    with serving(models) as running:
        yield running


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llm", *words], capture_output=True, text=True, timeout=120)


def test_an_installed_bundle_is_a_model(one_variant: Path) -> None:
    assert main(["install", str(one_variant), "--name", "demo"]) == 0
    listed = typed("models", "-q", "edgepack").stdout
    assert "EdgepackModel: edgepack\n" in listed
    assert "EdgepackModel: edgepack/demo\n" in listed
    first = typed("-m", "edgepack/demo", "-o", "temperature", "0", "What is a token?")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("A token is a small piece of text")
    second = typed("-c", "-o", "max_tokens", "3", "And edgepack?")
    assert second.stdout.strip()
    earlier, later = json.loads(typed("logs", "--json", "-n", "2").stdout)
    assert later["conversation_id"] == earlier["conversation_id"]
    assert (later["output_tokens"], later["input_tokens"] > earlier["input_tokens"]) == (3, True)
    bound = typed("-m", "edgepack/demo", "--schema", "name, lives int", "Invent a cat.")
    cat = json.loads(bound.stdout)
    assert (type(cat["name"]), type(cat["lives"])) == (str, int)


def test_a_path_and_a_server_are_models_too(one_variant: Path, served: Serving) -> None:
    there = typed("-m", "edgepack", "-o", "where", str(one_variant), "-o", "max_tokens", "3", "What is a token?")
    assert (there.returncode, there.stdout[:7]) == (0, "A token")
    asked_there = typed("-m", "edgepack", "-o", "where", f"{served.url}#fake", "Hello")
    assert asked_there.stdout == "Good day!\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "edgepack", "Hello"), "edgepack was given no bundle. Add -o where PATH"),
        (("-m", "edgepack", "-o", "where", "nowhere.edgepack", "Hello"), "There is no bundle at nowhere.edgepack."),
        (("-m", "edgepack", "-o", "warmth", "1", "Hello"), "warmth"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    ended = typed(*words)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_thought_is_apart_and_usage_is_told(served: Serving) -> None:
    response = llm.get_model("edgepack").prompt("Hello", system="Be kind.", where=f"{served.url}#fake")
    events = list(response.stream_events())
    assert "".join(each.chunk for each in events if each.type == "reasoning") == "A greeting."
    assert response.text() == "".join(each.chunk for each in events if each.type == "text") == "Good day!"
    used = response.usage()
    assert used.output > len("Good day!")
    assert used.details["reasoning_tokens"] > 0


def test_it_can_be_awaited(served: Serving) -> None:
    async def answered() -> str:
        conversation = llm.get_async_model("edgepack").conversation()
        await conversation.prompt("Hello", where=f"{served.url}#fake")
        again = await conversation.prompt("Hello again", where=f"{served.url}#fake")
        assert [each["role"] for each in asked.messages(again.prompt)] == ["user", "assistant", "user"]
        return await again.text()

    assert asyncio.run(answered()) == "Good day!"


def test_tools_are_called(served: Serving) -> None:
    model: Any = llm.get_model("edgepack")
    response = model.prompt("Will it rain in Rome?", tools=[weather], where=f"{served.url}#calling")
    (call,) = response.tool_calls()
    assert (call.name, call.arguments) == ("weather", {"place": "Rome"})
    assert [each.output for each in response.execute_tool_calls()] == ["Rain in Rome."]
    following = response.reply("Well?", tool_results=response.execute_tool_calls(), where=f"{served.url}#calling")
    said = asked.messages(following.prompt)
    assert [each["role"] for each in said] == ["user", "assistant", "tool", "user"]
    assert said[2]["content"] == "Rain in Rome."
    assert following.tool_calls()


def test_an_older_llm_goes_on_without_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edgepack_llm.models", None)  # whose import fails then
    monkeypatch.delitem(sys.modules, "edgepack_llm.plugin", raising=False)
    with pytest.warns(UserWarning, match="pip install --upgrade llm"):
        importlib.import_module("edgepack_llm.plugin")


def test_a_bundle_without_tools_says_so(one_variant: Path) -> None:
    with pytest.raises(EdgepackError, match="tool calls"):
        llm.get_model("edgepack").prompt("Hello", tools=[weather], where=str(one_variant)).text()
