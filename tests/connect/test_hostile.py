"""Servers that mean no good, or are broken: each answer ends, soon and small, as one of our errors or as an answer."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from web_servers import Reply, Request, response, self_signed, serving

import edgepack
from edgepack import EdgepackError, LanguageModel

MODELS = json.dumps({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 512}]}).encode()
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
USER = [{"role": "user", "content": "Hello"}]


def event(delta: object = None, finish: object = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


GOOD = event({"content": "Hi"}) + event({}, "stop") + b"data: [DONE]\n\n"


def after_models(answer: Callable[[Request], bytes | Iterator[bytes] | None]) -> Reply:
    def reply(request: Request) -> bytes | Iterator[bytes] | None:
        if request.path == "/v1/models":
            return response(200, MODELS, content_type="application/json")
        return response(404) if request.method == "GET" else answer(request)

    return reply


def forever(piece: bytes, before: bytes = STREAM) -> Callable[[Request], Iterator[bytes]]:
    def pieces(request: Request) -> Iterator[bytes]:
        yield before
        while True:
            yield piece

    return pieces


def slowly(data: bytes, wait: float = 0.05) -> Callable[[Request], Iterator[bytes]]:
    """One byte at a time, without an end: a server's wait, not the test's."""

    def pieces(request: Request) -> Iterator[bytes]:
        while True:
            for byte in data:
                yield bytes([byte])
                time.sleep(wait)

    return pieces


def said(body: bytes) -> Callable[[Request], bytes]:
    return lambda request: STREAM + body


BROKEN: dict[str, tuple[Callable[[Request], bytes | Iterator[bytes] | None], str]] = {
    "nothing": (lambda request: b"", "EngineError"),
    "no HTTP": (lambda request: b"SSH-2.0-OpenSSH_9.2\r\n", "EngineError"),
    "a head without an end": (forever(b"x-a: b\r\n", b"HTTP/1.1 200 OK\r\n"), "EngineError"),
    "a header without an end": (forever(b"a" * 4096, b"HTTP/1.1 200 OK\r\nx-a: "), "EngineError"),
    "a page": (lambda request: response(200, b"<html>", content_type="text/html"), "EngineError"),
    "no type": (lambda request: response(200, GOOD), "EngineError"),
    "JSON": (lambda request: response(200, b"{}", content_type="application/json"), "EngineError"),
    "a redirect": (lambda request: response(302, location="http://127.0.0.1:1/"), "UsageError"),
    "packed": (
        lambda request: response(200, gzip.compress(GOOD), content_type="text/event-stream", content_encoding="gzip"),
        "EngineError",
    ),
    "a bomb": (
        lambda request: response(
            200, gzip.compress(b"\0" * 10_000_000), content_type="text/event-stream", content_encoding="gzip"
        ),
        "EngineError",
    ),
    "cut at once": (said(b""), "EngineError"),
    "cut after a piece": (said(event({"content": "Hi"})), "EngineError"),
    "done without an end": (said(event({"content": "Hi"}) + b"data: [DONE]\n\n"), "EngineError"),
    "shorter than it says": (
        lambda request: response(200, GOOD[:-20], content_type="text/event-stream", content_length="9999"),
        "EngineError",
    ),
    "chunks that are none": (
        lambda request: STREAM.replace(b"connection: close", b"transfer-encoding: chunked") + b"zz\r\nhello",
        "EngineError",
    ),
    "no JSON": (said(b"data: {\n\n"), "EngineError"),
    "no UTF-8": (said(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'), "EngineError"),
    "half a pair": (said(b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n'), "EngineError"),
    "deep": (said(b"data: " + b"[" * 200_000 + b"\n\n"), "EngineError"),
    "a list": (said(b"data: []\n\n"), "EngineError"),
    "a number as text": (said(event({"content": 7})), "EngineError"),
    "choices that are none": (said(b'data: {"choices": {"a": 1}}\n\n'), "EngineError"),
    "a huge number": (
        said(b'data: {"choices": [], "usage": {"prompt_tokens": ' + b"9" * 4000 + b"}}\n\n"),
        "EngineError",
    ),
    "an end of its own": (said(event({"content": "Hi"}, "content_filter") + b"data: [DONE]\n\n"), "EngineError"),
    "a call without tools": (
        said(event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, "tool_calls") + b"data: [DONE]\n\n"),
        "EngineError",
    ),
    "calls without an end": (
        said(b"".join(event({"tool_calls": [{"index": each}]}) for each in range(1000))),
        "EngineError",
    ),
    "an error in the middle": (
        said(event({"content": "Hi"}) + b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'),
        "EngineError",
    ),
    "an error of any form": (said(b'data: {"error": [1, 2]}\n\n'), "EngineError"),
    "a line without an end": (forever(b"x" * 65536, STREAM + b"data: "), "EngineError"),
    "an answer without an end": (forever(event({"content": "x" * 65536})), "EngineError"),
    "a refusal without an end": (forever(b"x" * 65536, b"HTTP/1.1 400 Bad\r\n\r\n"), "UsageError"),
    "a refusal of control characters": (
        lambda request: response(400, json.dumps({"error": "\x1b[31m\u202e" * 99}).encode()),
        "UsageError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_an_error_of_ours(name: str) -> None:
    answer, error = BROKEN[name]
    with serving(after_models(answer)) as served, edgepack.connect(served.url) as model:
        with pytest.raises(EdgepackError) as caught:
            model.chat(USER)
        assert type(caught.value).__name__ == error
        assert len(str(caught.value)) < 700
        assert "\x1b" not in str(caught.value)
        assert served.sent < 80 << 20
        assert len(served.paths("POST")) == 1


NEVER: dict[str, Callable[[Request], bytes | Iterator[bytes] | None]] = {
    "silence": lambda request: None,
    "a head and silence": lambda request: _then_silence(STREAM),
    "comments alone": slowly(b": waiting\n\n", 0.01),
    "bytes of a head": slowly(b"HTTP/1.1 200 OK\r\nx-"),
    "heads before the head": forever(b"HTTP/1.1 103 Early\r\n\r\n", b""),
    "bytes of a line": lambda request: _after(STREAM, slowly(b"data: ")(request)),
    "comments in a stream": lambda request: _after(STREAM, forever(b": waiting\n\n" * 50, b"")(request)),
}


def _then_silence(data: bytes) -> Iterator[bytes]:
    yield data
    yield from slowly(b"\n", 0.02)(Request("GET", "/", {}))


def _after(data: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield data
    yield from pieces


@pytest.mark.parametrize("name", NEVER)
def test_an_answer_that_never_comes_has_an_end(name: str) -> None:
    with (
        serving(after_models(NEVER[name])) as served,
        edgepack.connect(served.url, timeout_s=0.3) as model,
        pytest.raises(edgepack.EngineError),
    ):
        model.chat(USER)


PROBES: dict[str, bytes | None] = {
    "nothing": b"",
    "a page": response(200, b"<html>", content_type="text/html"),
    "deep": response(200, b"[" * 200_000),
    "no list": response(200, b'{"data": 3}'),
    "a list of anything": response(200, b'{"data": [1, {"id": 3}, null, {"owned_by": "vllm"}]}'),
    "too large": response(200, b" " * (2 << 20)),
    "a redirect": response(307, location="http://127.0.0.1:1/"),
    "packed": response(200, gzip.compress(MODELS), content_encoding="gzip"),
    "not authorised": response(401, b"{}"),
    "broken": response(500, b"{}"),
    "silence": None,
}


@pytest.mark.parametrize("name", PROBES)
def test_a_server_that_is_none_is_an_error_of_the_connection(name: str) -> None:
    with serving(lambda request: PROBES[name]) as served:
        with pytest.raises(EdgepackError):
            edgepack.connect(served.url, timeout_s=0.3)
        assert served.sent < 16 << 20


def test_an_answer_of_what_is_not_asked_for_is_read_all_the_same() -> None:
    odd = (
        b'data: {"id": 3, "what": [1], "choices": [{"index": 1, "delta": {"content": "other"}}]}\n\n'
        b'data: {"choices": [{"index": 0, "delta": {"content": null, "refusal": {}}, "logprobs": null}]}\n\n'
        b'data: {"choices": []}\n\ndata: {}\n\n' + GOOD + event({"content": "after the end"})
    )
    with serving(after_models(said(odd))) as served, edgepack.connect(served.url) as model:
        result = model.chat(USER)
    assert (result.text, result.usage.counted, result.usage.prompt_tokens) == ("Hi", False, 0)
    assert result.to_dict()["usage"]["counted"] is False


def test_a_certificate_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with serving(after_models(said(GOOD)), self_signed(tmp_path)) as served:
        with pytest.raises(edgepack.EngineError, match="a certificate that this machine does not trust"):
            edgepack.connect(served.url)
        assert not served.requests


def test_a_certificate_that_the_machine_trusts_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with serving(after_models(said(GOOD)), context) as served, edgepack.connect(served.url, api_key="k") as model:
        assert model.chat(USER).text == "Hi"


def test_a_cancel_from_another_thread_ends_a_wait() -> None:
    from threading import Timer

    with serving(after_models(lambda request: _then_silence(STREAM + event({"content": "Hi"})))) as served:
        with edgepack.connect(served.url) as model, model.stream_chat(USER) as stream:
            assert next(stream).text == "Hi"
            Timer(0.05, stream.cancel).start()
            assert list(stream) == []
        assert (stream.result.text, stream.result.finish_reason) == ("Hi", "cancelled")


def test_a_close_from_another_thread_ends_a_wait() -> None:
    from threading import Timer

    with serving(after_models(lambda request: _then_silence(STREAM + event({"content": "Hi"})))) as served:
        model: LanguageModel = edgepack.connect(served.url)
        with pytest.raises(edgepack.EngineError), model.stream_chat(USER) as stream:
            next(stream)
            Timer(0.05, model.close).start()
            next(stream)


def _mutated(seed: int) -> bytes:
    random_of = random.Random(seed)
    data = bytearray(STREAM + GOOD * random_of.randint(1, 3))
    for _ in range(random_of.randint(1, 12)):
        place = random_of.randrange(len(data))
        match random_of.randrange(4):
            case 0:
                data[place] = random_of.randrange(256)
            case 1:
                del data[place : place + random_of.randint(1, 30)]
            case 2:
                data[place:place] = random_of.randbytes(random_of.randint(1, 30))
            case _:
                data[place:place] = data[:place]
        if not data:
            return b""
    return bytes(data)


def _check(seed: int, model: LanguageModel) -> None:
    try:
        result = model.chat(USER)
    except EdgepackError:
        return
    assert result.finish_reason in ("stop", "length")
    assert len(result.text) < 10_000


def _answering(seeds: Iterator[int]) -> Reply:
    return after_models(lambda request: _mutated(next(seeds)))


def test_a_hundred_damaged_answers() -> None:
    with serving(_answering(iter(range(100)))) as served, edgepack.connect(served.url, timeout_s=5) as model:
        for seed in range(100):
            _check(seed, model)
        assert len(served.paths("POST")) == 100


@pytest.mark.hostile
def test_thousands_of_damaged_answers(portion: Callable[[int], int]) -> None:
    seeds = range(100, 100 + portion(5000))
    with serving(_answering(iter(seeds))) as served, edgepack.connect(served.url, timeout_s=5) as model:
        for seed in seeds:
            _check(seed, model)
