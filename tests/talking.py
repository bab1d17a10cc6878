"""What the clients of the server are asked to talk about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from serving import Serving

ENGINES = ("gguf", "onnx")
ASKED = "What is the capital of France?"
TURNS: list[Any] = [{"role": "user", "content": ASKED}]
TOKEN = "a-token-of-the-tests"


class City(BaseModel):
    """What the answers are bound to."""

    name: Literal["Paris", "Rome"]
    river: bool


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Tell the weather of a city.", "parameters": SCHEMA}

engines = pytest.mark.parametrize("engine", ENGINES)


@contextmanager
def busy(served: Serving) -> Iterator[None]:
    """Have as many wait as may."""
    hosted = served.host.find("gguf")
    hosted.requests += 1000
    try:
        yield
    finally:
        hosted.requests -= 1000
