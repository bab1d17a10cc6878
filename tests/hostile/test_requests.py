"""Bodies that no client of any interface sends, by the thousand: each is answered, and the server goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from http.client import HTTPConnection
from typing import Any

import pytest
from serving import HELLO, serving, until

from edgepack import fake
from edgepack_serve.app import DIALECTS, QUESTIONS

pytestmark = pytest.mark.hostile

_ODD: list[Any] = [
    None, True, False, 0, -1, 1 << 70, 1.5, 1e308, "", "a" * 5000, "\x00", "\ud7ff<|end|>", [], {}, [[]], [{}], [None],
    {"type": "text"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}},
    {"role": "user", "content": []}, {"role": "tool"}, {"a": {"b": [1, {"c": None}]}},
]  # fmt: skip
_FULL: dict[str, Any] = {
    **HELLO,
    "prompt": "Hello",
    "input": "a",
    "max_tokens": 3,
    "temperature": 1,
    "top_p": 0.9,
    "n": 1,
    "stop": ["x"],
    "stream": True,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 1,
    "response_format": {"type": "text"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "stream_options": {"include_usage": True},
    "metadata": {},
    "system": "Be kind.",
    "options": {"num_predict": 3},
    "format": "json",
}


def needed(known: frozenset[str]) -> set[str]:
    """Return the fields that a request has to have."""
    asks = next(name for name in ("messages", "input", "prompt") if name in known)
    return {"model", asks} | ({"max_tokens"} & known)


def body(random: random.Random, known: frozenset[str]) -> bytes:
    """Return a body of these fields, most with something odd: a value, another field, a byte, or the end."""
    chosen = {key for key in _FULL if random.random() < (0.5 if key in known else 0.01)} | needed(known)
    if not chosen >= {"stream", "stream_options"}:
        chosen -= {"stream_options"}
    made = json.loads(json.dumps({key: _FULL[key] for key in chosen}))
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        place: Any = made
        while isinstance(place, (dict, list)) and place and random.random() < 0.7:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = random.choice(keys)
            if not isinstance(place[key], (dict, list)) or random.random() < 0.4:
                place[key] = deepcopy(random.choice(_ODD))
                break
            place = place[key]
    data = bytearray(json.dumps(made).encode())
    if random.random() < 0.3:
        for _ in range(random.randint(1, 8)):
            at = random.randrange(len(data))
            kind = random.randint(0, 2)
            if kind == 0:
                data[at] = random.randrange(256)
            elif kind == 1:
                data[at:at] = random.choice([b"[" * 100, b'"', b"\\u0000", b"{", b"]", b"\xff", b"1e999"])
            else:
                del data[at : at + random.randint(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("path", [*DIALECTS, *QUESTIONS])
def test_bodies_that_are_wrong_in_any_way(path: str, portion: Callable[[int], int]) -> None:
    drawing, door = random.Random(path), {**DIALECTS, **QUESTIONS}[path]
    form = getattr(door, "request", None)
    known = frozenset(_FULL) if form is None else frozenset(form.__struct_fields__)
    embeds = "embed" in path
    making = (lambda: fake.embedding_model(context=512)) if embeds else lambda: fake.model(says="Hi!", context=512)
    with serving({"fake": making}) as served:
        connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
        statuses: dict[int, int] = {}
        for _ in range(portion(10_000 // (len(DIALECTS) + len(QUESTIONS)))):
            data = body(drawing, known)
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            statuses[response.status] = statuses.get(response.status, 0) + 1
            assert response.status in (200, 400, 404), (data, answer)
            if response.status != 200:
                assert "error" in answer.decode()
        assert 400 in statuses
        plain = served.ask("POST", path, {name: _FULL[name] for name in needed(known)})
        assert (plain.status, plain.read() != b"") == (200, True)
        until(lambda: len(served.underway) == 0)
        assert served.host.models["fake"].requests == 0
