"""What goes to a server for each option, as data: the fields of each."""

from __future__ import annotations

from typing import Any

import pytest
from server_questions import SCHEMA, weather

from edgepack import PromptTooLongError, SchemaError, UsageError, errors
from edgepack_connect.asking import read_options, write_fields
from edgepack_connect.capabilities import Kind
from edgepack_connect.faults import refused, words_of
from edgepack_connect.server import numbers
from edgepack_connect.servers import SERVERS

NAMED = {server.name: server for server in SERVERS}
NEW = (1 << 20,)


def fields(name: str, kind: Kind, version: tuple[int, ...] | None = NEW, **options: Any) -> dict[str, object]:
    return write_fields(read_options(kind, options), NAMED[name].fields(kind), name, version)


FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": "answer", "strict": True}}


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("vLLM", {"json_schema": SCHEMA}, {"response_format": FORMAT}),
        ("vLLM", {"regex": "[0-9]"}, {"structured_outputs": {"regex": "[0-9]"}}),
        ("vLLM", {"n_best": 3}, {"logprobs": True, "top_logprobs": 3}),
        ("vLLM", {"variables": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("vLLM", {"continue_final": True}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("vLLM", {"control_tokens": "parse", "on_overflow": "error"}, {}),
        ("SGLang", {"regex": "[0-9]", "top_k": 0}, {"regex": "[0-9]", "top_k": -1}),
        ("llama-server", {"repetition_penalty": 1.2}, {"repeat_penalty": 1.2, "repeat_last_n": -1}),
        ("llama-server", {"thinking_tokens": 5}, {"reasoning_budget_tokens": 5}),
        ("TGI", {"regex": "[0-9]"}, {"response_format": {"type": "regex", "value": "[0-9]"}}),
        ("TGI", {"json_schema": SCHEMA}, {"response_format": {"type": "json", "value": SCHEMA}}),
        ("Ollama", {"max_tokens": 5, "seed": 1}, {"options": {"num_predict": 5, "seed": 1}}),
        ("Ollama", {"json_schema": SCHEMA, "thinking": False}, {"format": SCHEMA, "think": False}),
        ("edgepack", {"grammar": 'start: "a"', "date": "2026-01-01"}, {"grammar": 'start: "a"', "date": "2026-01-01"}),
        ("edgepack", {"thinking": False, "thinking_tokens": None}, {"thinking": False}),
    ],
)
def test_an_option_stands_where_the_server_reads_it(
    name: str, options: dict[str, object], written: dict[str, object]
) -> None:
    assert fields(name, "chat", **options) == written


def test_likelihoods_of_texts_are_a_number() -> None:
    assert fields("vLLM", "text", logprobs=True) == {"logprobs": 0}
    assert fields("vLLM", "text", n_best=3) == {"logprobs": 3}


def test_a_field_that_older_versions_pass_over_is_refused_for_them() -> None:
    for version in (None, (0, 9), (0, 11, 2)):
        with pytest.raises(UsageError, match=r"regex was given, and vLLM is known to honour it from 0\.12 on"):
            fields("vLLM", "chat", version, regex="[0-9]")
    assert fields("vLLM", "chat", (0, 12), regex="a")


def test_a_value_that_cannot_be_honoured_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="on_overflow is 'rolling', which vLLM cannot honour"):
        fields("vLLM", "chat", on_overflow="rolling")
    with pytest.raises(UsageError, match="reuse is 'exact', which llama-server cannot honour"):
        fields("llama-server", "chat", reuse="exact")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"json_schema": SCHEMA, "regex": "a"}, "json_schema was given beside regex"),
        ({"thinking": False, "thinking_tokens": 3}, "thinking_tokens was given beside thinking=False"),
        ({"variables": 3}, "variables is 3"),
        ({"tool_choice": "auto"}, "tool_choice was given without tools"),
        ({"tools": [weather], "tool_choice": 3}, "tool_choice is of type int"),
        ({"tools": [weather], "tool_choice": "time"}, "tool_choice is 'time', which is no tool"),
    ],
)
def test_options_that_make_no_sense_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_options("chat", options)


def test_a_schema_that_binds_nothing_is_refused_here_too() -> None:
    with pytest.raises(SchemaError, match="no keyword that could bind"):
        read_options("chat", {"json_schema": {"type": "object", "reqired": ["a"]}})


def test_a_named_tool_is_chosen_as_openai_writes_it() -> None:
    found = fields("vLLM", "chat", tools=[weather], tool_choice={"name": "weather"})
    assert found["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.32.1.dev4+g1", (0, 32, 1)), ("v0.9", (0, 9)), ("b11434-9f3a", (11434,)), ("unknown", None), (None, None)],
)
def test_numbers_of_versions(version: str | None, found: tuple[int, ...] | None) -> None:
    assert numbers(version) == found


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, "UsageError"), (400, "UsageError"), (401, "UsageError"), (403, "UsageError"), (404, "UsageError"),
        (408, "EngineTimeoutError"), (413, "UsageError"), (429, "EngineError"), (500, "EngineError"),
        (502, "EngineError"), (503, "EngineError"), (504, "EngineTimeoutError"), (599, "EngineError"),
    ],
)  # fmt: skip
def test_each_status_is_an_error_of_ours(status: int, error: str) -> None:
    found = refused(status, "no", "", "A server", None)
    assert type(found) is getattr(errors, error)
    assert str(status) in str(found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no", "code": "c"}}', ("no", "c")),
        (b'{"error": "no", "error_type": "validation"}', ("no", "validation")),
        (b'{"object": "error", "message": "no", "type": "BadRequestError", "code": 400}', ("no", "BadRequestError")),
        (b'{"detail": "no"}', ("no", "")),
        (b'{"detail": [{"loc": ["body", "top_k"], "msg": "no", "type": "int"}]}', ("body.top_k: no", "")),
        (b'{"error": {"message": 3}}', ("", "")),
        (b'{"detail": [3]}', (": ", "")),
        (b"[]", ("", "")),
        (b"\xff", ("", "")),
        (b"[" * 100_000, ("", "")),
    ],
)
def test_the_words_of_an_error(body: bytes, words: tuple[str, str]) -> None:
    assert words_of(body) == words


def test_what_is_too_long_is_told_apart() -> None:
    said = "This model's maximum context length is 8192 tokens"
    assert isinstance(refused(400, said, "", "A server", None), PromptTooLongError)
