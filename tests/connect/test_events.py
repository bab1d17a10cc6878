"""From bytes to events: however a network cuts them, they are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import EngineError
from edgepack_connect.events import JsonLines, ServerSentEvents, Splitter
from edgepack_connect.patience import MAX_EVENT

SENT = (
    b": waiting\n\ndata: one\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\nid: 3\rdata: three\r\r\n"
    b"retry: 1\n\ndata\n\ndata: [DONE]\n\ndata: never ended"
)
EVENTS = [b"one", b"two\nlines", b"three", b"[DONE]"]
LINES = b'{"a": 1}\n\n{"b": 2}\r\n  \n{"c": 3}'


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def events(splitter: Splitter, pieces: list[bytes]) -> list[bytes]:
    return [event for piece in pieces for event in splitter.push(piece)]


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_server_sent_events_are_the_same_however_they_are_cut(places: list[int]) -> None:
    splitter = ServerSentEvents()
    assert events(splitter, cut(SENT, places)) == EVENTS
    assert splitter.rest() == b""


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_lines_are_the_same_however_they_are_cut(places: list[int]) -> None:
    splitter = JsonLines()
    assert events(splitter, cut(LINES, places)) == [b'{"a": 1}', b'{"b": 2}']
    assert splitter.rest() == b'{"c": 3}'


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_some_events(pieces: list[bytes]) -> None:
    assert all(isinstance(event, bytes) for event in events(ServerSentEvents(), pieces))


@pytest.mark.parametrize("splitter", [ServerSentEvents(), JsonLines()])
def test_an_event_without_an_end_has_a_bound(splitter: Splitter) -> None:
    with pytest.raises(EngineError, match="more than 4 MiB"):
        events(splitter, [b"data: " + b"x" * 65536] + [b"x" * 65536] * (MAX_EVENT >> 16))


def test_an_event_of_many_lines_has_a_bound() -> None:
    with pytest.raises(EngineError, match="more than 4 MiB"):
        events(ServerSentEvents(), [b"data: " + b"x" * 65536 + b"\n"] * ((MAX_EVENT >> 16) + 1))
