"""Which of edgepack's options a server honours, and under which of its own fields: plain data.

An option without a field here is refused by name before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True)
class Field:
    """Where an option stands in a request's JSON: its ``path``, levels by dots; "" where nothing has to be sent, since
    the server does so anyway.

    Of ``values``, where there are any, an option must be one, and is written as it says; ``instead`` has those that are
    only written otherwise. ``beside`` are fields that go with it, by their paths. ``since`` is the first version of the
    server, of those that were looked at, that honours it; older ones pass over the field in silence.
    """

    path: str
    values: Mapping[object, object] | None = None
    instead: Mapping[object, object] = field(default_factory=dict)
    beside: Mapping[str, object] = field(default_factory=dict)
    since: tuple[int, ...] | None = None


Fields = Mapping[str, Field]
"""Fields by the option that they stand for."""


def plain(*names: str) -> dict[str, Field]:
    """Return fields that are called as the options are."""
    return {name: Field(name) for name in names}


OVERFLOWS = Field("", {"error": None})
"""A prompt that is too long is an error, and nothing else can be asked for."""

OPENAI_SCHEMA = Field(
    "response_format.json_schema.schema",
    beside={
        "response_format.type": "json_schema",
        "response_format.json_schema.name": "answer",
        "response_format.json_schema.strict": True,
    },
)

OPENAI_LOGPROBS = {"logprobs": Field("logprobs"), "n_best": Field("top_logprobs")}
"""Of chats."""

OLD_LOGPROBS = {"logprobs": Field("logprobs", {True: 0}), "n_best": Field("logprobs")}
"""Of texts: a number of alternatives."""

OPENAI_TOOLS = plain("tools", "tool_choice", "parallel_tool_calls")

CONTINUES = Field("continue_final_message", {True: True}, beside={"add_generation_prompt": False})
"""As vLLM, SGLang and llama-server call it."""

PARSES = Field("", {"parse": None})
"""Names of special tokens in messages become those tokens, and nothing else can be asked for."""
