"""Servers as they answered, or as their documentation says that they do: each is known by itself, and what it says is
read."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from server_questions import RECORDED, SCHEMA, USER, asked, replayed, weather
from serving import serving as server
from web_servers import Request, response, serving

import edgepack
from edgepack import fake
from edgepack_connect.asking import KNOWN
from edgepack_connect.servers import SERVERS

NAMES = {
    "llama-server": ("llama-server", "demo", 1024),
    "vllm": ("vLLM", "demo", 512),
    "sglang": ("SGLang", "Qwen/Qwen3-0.6B", 40960),
    "tgi": ("TGI", "HuggingFaceTB/SmolLM2-135M-Instruct", 4096),
    "lm-studio": ("LM Studio", "qwen3-0.6b", 40960),
    "ollama": ("Ollama", "qwen3:0.6b", None),
    "openai": ("OpenAI's interface", "gpt-4.1-mini", None),
}
RECORDINGS = sorted(path.stem for path in RECORDED.glob("*.json"))
REAL = [name for name in RECORDINGS if json.loads((RECORDED / f"{name}.json").read_text())["recorded"]]
WRITTEN = [name for name in RECORDINGS if name not in REAL]


def test_each_server_has_a_recording() -> None:
    assert {NAMES[name][0] for name in RECORDINGS} == {each.name for each in SERVERS} - {"edgepack"}


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_server_is_known_by_what_it_says(name: str) -> None:
    with replayed(name) as served, edgepack.connect(served.url) as model:
        server, named, context = NAMES[name]
        assert (model.backend, model.context) == (server, context)
        assert isinstance(model.setup, edgepack.Served)
        assert model.setup.model == named
        assert repr(model).startswith(f"<Remote {named}: {server}")
        assert len(served.paths()) == len(set(served.paths()))  # each question is asked once


@pytest.mark.parametrize("name", REAL)
def test_what_a_real_server_answered_is_read(name: str) -> None:
    """The same requests as when it was recorded: anything else is refused by the replay."""
    with replayed(name) as served, edgepack.connect(served.url) as model:
        found = asked(model)
    answered = {name: each for name, each in found.items() if isinstance(each, edgepack.Result)}
    assert {"text", "chat", "likely", "bound", "stopped"} <= set(answered)
    for each in answered.values():
        assert each.usage.counted
        assert each.usage.completion_tokens > 0
        assert each.usage.prompt_tokens > 0
    chat, likely = answered["chat"], answered["likely"]
    assert chat.finish_reason in ("stop", "length")
    assert likely.finish_reason == "length"
    assert likely.logprobs is not None
    assert "".join(each.text for each in likely.logprobs) == likely.text
    assert all(len(each.best) == 2 for each in likely.logprobs)
    assert chat.text.startswith(likely.text)
    assert " " not in answered["stopped"].text
    assert set(json.loads(answered["bound"].text)) == {"city"}
    assert isinstance(found["too_long"], edgepack.PromptTooLongError)
    assert all(isinstance(each.token_id, int) for each in likely.logprobs)
    if name == "vllm":
        assert len(answered["digits"].text) == 3
        assert len(chat.token_ids) == chat.usage.completion_tokens
    else:
        assert isinstance(found["digits"], edgepack.UsageError)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_server_is_said_to_answer_is_read(name: str) -> None:
    with replayed(name) as served, edgepack.connect(served.url) as model:
        result = model.chat(USER, **({"tools": [weather]} if name in ("openai", "ollama") else {}))
        text = model.generate("The capital of France is")
    assert result.text in ("Red.", "Red")
    assert (text.text.rstrip("."), text.usage.completion_tokens) == (" Paris", 3)
    assert (result.finish_reason, result.usage.prompt_tokens, result.usage.completion_tokens) == ("stop", 14, 3)
    if name in ("openai", "ollama"):
        (call,) = result.tool_calls
        assert (call.name, call.arguments) == ("weather", {"city": "Rome"})
        assert result.logprobs is not None
        assert result.logprobs[0].best[0].text == "Red"
    if name in ("sglang", "ollama"):
        assert result.reasoning == "A colour"
        assert text.finish_reason == "length"
    if name == "sglang":
        assert (result.stop, result.usage.cached_tokens) == (151645, 8)
    if name == "ollama":
        assert (result.timings.prefill_tps, result.timings.decode_tps) == (2000.0, 100.0)


REFUSALS = [
    (name, status, answer, error)
    for name in WRITTEN
    for status, answer, error in json.loads((RECORDED / f"{name}.json").read_text())["refusals"]
]


@pytest.mark.parametrize(("name", "status", "answer", "error"), REFUSALS)
def test_what_a_server_refuses_is_an_error_of_ours(name: str, status: int, answer: object, error: str) -> None:
    gets = {each["path"]: each for each in json.loads((RECORDED / f"{name}.json").read_text())["exchanges"]}

    def reply(request: Request) -> bytes:
        if request.method == "GET":
            found = gets.get(request.path)
            return response(404) if found is None else response(200, json.dumps(found["answer"]).encode())
        return response(status, json.dumps(answer).encode(), content_type="application/json", retry_after="7")

    with serving(reply) as served, edgepack.connect(served.url) as model:
        with pytest.raises(getattr(edgepack, error)) as caught:
            model.chat(USER)
        assert len(served.paths("POST")) == 1  # nothing is tried again
    if status == 429:
        assert caught.value.hint == "Ask again after 7 seconds."


VALUES: dict[str, object] = {
    "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
    "stop": ["x"], "seed": 3, "json_schema": SCHEMA, "regex": "[0-9]", "grammar": 'start: "a"', "logprobs": True,
    "n_best": 2, "prompt_lookup": True, "draft": True, "on_overflow": "error", "reuse": "all", "tools": [weather],
    "variables": {"a": 1}, "date": "2026-01-01", "continue_final": True, "control_tokens": "parse", "thinking": True,
    "thinking_tokens": 9, "tool_choice": "auto", "parallel_tool_calls": True,
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_option_is_asked_for_or_refused_by_name(name: str) -> None:
    """Exhaustive: each option of each kind of question, on each server. Nothing is dropped."""
    with replayed(name) as served, edgepack.connect(served.url) as model:
        for kind, known in KNOWN.items():
            for option in known:
                before = len(served.requests)
                given = {option: VALUES[option]} | (
                    {"tools": [weather]} if option.endswith(("_choice", "_calls")) else {}
                )
                if option in _honoured(model)[kind]:
                    _sent(model, served, kind, given)
                    assert len(served.requests) == before + 1
                else:
                    named = "logprobs" if option == "n_best" else option  # which asks for them
                    with pytest.raises(edgepack.UsageError, match=f"{named} was given, and {NAMES[name][0]} "):
                        _sent(model, served, kind, given)
                    assert len(served.requests) == before  # before anything is sent


def _honoured(model: edgepack.LanguageModel) -> dict[str, list[str]]:
    found: dict[str, list[str]] = model.capabilities  # type: ignore[attr-defined]
    return found


def _sent(model: edgepack.LanguageModel, served: object, kind: str, options: dict[str, object]) -> object:
    """Ask, and return the body that was sent, whatever comes of it."""
    messages = [*USER, {"role": "assistant", "content": "Re"}] if "continue_final" in options else USER
    begun = len(served.requests)  # type: ignore[attr-defined]
    with suppress(edgepack.EngineError, edgepack.ToolCallError):  # what was not recorded
        model.chat(messages, **options) if kind == "chat" else model.generate("x", **options)  # type: ignore[arg-type,call-overload]
    return json.loads(served.requests[begun].body)  # type: ignore[attr-defined]


MODELS_OWN = {"tools", "tool_choice", "parallel_tool_calls", "variables", "draft", "date", "grammar"}
"""What the model of the test below refuses for itself: it has no template for tools, no draft, no day."""


def test_edgepack_serve_knows_every_field_that_is_sent_to_it() -> None:
    """Each option that is said to be honoured is answered, or refused by the model for what it is: never as unknown."""
    refused: dict[str, str] = {}
    with server({"fake": lambda: fake.model(says="7", thinks="So.")}) as own, edgepack.connect(own.url) as model:
        honoured = _honoured(model)
        for kind, option in ((kind, option) for kind, options in honoured.items() for option in options):
            given: dict[str, Any] = {option: "text" if option == "control_tokens" else VALUES[option]}
            given |= {"tools": [weather]} if option.endswith(("_choice", "_calls")) else {}
            said = [*USER, {"role": "assistant", "content": "Re"}] if option == "continue_final" else USER
            try:
                model.chat(said, **given) if kind == "chat" else model.generate("x", **given)
            except edgepack.EdgepackError as error:
                refused[option] = str(error)
    assert honoured["chat"] == sorted(KNOWN["chat"])
    assert honoured["text"] == sorted({*KNOWN["text"]} - {"json_schema"})
    assert set(refused) <= MODELS_OWN
    assert not any(re.search("has no option|cannot be honoured here", said) for said in refused.values())
