"""Attacks, each with the status that ends it: the table of docs/serving.md."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from time import monotonic

import pytest
from serving import CHAT, HELLO, Serving, serving

from edgepack import fake
from edgepack.errors import UsageError
from edgepack_serve.exchange import Terms
from edgepack_serve.guard.bodies import Limits, decoded
from edgepack_serve.guard.names import Names

TOKEN = "correct-horse-battery-staple"
JSON = {"Content-Type": "application/json"}
HOST = "127.0.0.1"
BODY = json.dumps(HELLO).encode()


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    names = Names.of(HOST, added=["llm.home"], origins=["https://app.example"])
    limits = Limits(bytes=100_000, levels=20, seconds=0.3)
    with serving({"fake": lambda: fake.model(says="Hi")}, names=names, terms=Terms(limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Serving]:
    with serving({"fake": lambda: fake.model(says="Hi")}, token=TOKEN) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 200, id="no browser"),
        pytest.param({"Host": "localhost:9000"}, 200, id="a tunnel"),
        pytest.param({"Host": "LLM.home."}, 200, id="a name that was added"),
        pytest.param({"Host": "evil.example"}, 403, id="DNS rebinding"),
        pytest.param({"Host": "127.0.0.1.evil.example"}, 403, id="a name that looks like an address"),
        pytest.param({"Host": "localhost@evil.example"}, 403, id="a host with a user"),
        pytest.param({"Host": "10.0.0.1"}, 403, id="an address that it is not bound to"),
        pytest.param({"Host": ""}, 403, id="no host"),
        pytest.param({"Host": HOST, "Origin": f"http://{HOST}"}, 200, id="its own page"),
        pytest.param({"Host": HOST, "Origin": "https://app.example"}, 200, id="an origin that was added"),
        pytest.param({"Host": HOST, "Origin": "http://evil.example"}, 403, id="a foreign origin"),
        pytest.param({"Host": HOST, "Origin": "null"}, 403, id="an origin that hides"),
        pytest.param({"Host": HOST, "Origin": f"http://{HOST}:1"}, 403, id="another port of this machine"),
        pytest.param({"Host": HOST, "Origin": f"https://{HOST}"}, 403, id="another scheme"),
        pytest.param({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403, id="a form without Origin"),
    ],
)
def test_whose_page_asks(served: Serving, headers: Mapping[str, str], status: int) -> None:
    assert served.ask("POST", CHAT, BODY, headers).status == status


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        pytest.param("text/plain", BODY, 415, id="text/plain, which needs no preflight"),
        pytest.param("application/x-www-form-urlencoded", BODY, 415, id="a form"),
        pytest.param("multipart/form-data", BODY, 415, id="a form with files"),
        pytest.param("", BODY, 415, id="no type"),
        pytest.param("text/plain; application/json", BODY, 415, id="a type that hides another"),
        pytest.param("application/json; charset=utf-8", BODY, 200, id="JSON"),
        pytest.param("application/json", b"", 400, id="nothing"),
        pytest.param("application/json", b"[]", 400, id="no object"),
        pytest.param("application/json", BODY + BODY, 400, id="two objects"),
        pytest.param("application/json", b'{"model": "\xff"}', 400, id="no UTF-8"),
        pytest.param("application/json", b'{"model": "\\ud800", "messages": []}', 400, id="half a surrogate pair"),
        pytest.param("application/json", b'{"n": ' + b"[" * 30 + b"]" * 30 + b"}", 400, id="more levels than it takes"),
        pytest.param("application/json", b'{"n": ' + b"[" * 90_000, 400, id="levels without end"),
        pytest.param("application/json", b'{"n": 1e999}', 400, id="a number that is none"),
        pytest.param("application/json", b'{"a": "' + b"a" * 100_000 + b'"}', 413, id="too large"),
    ],
)
def test_bodies(served: Serving, kind: str, body: bytes, status: int) -> None:
    assert served.ask("POST", CHAT, body, {"Content-Type": kind}).status == status


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_no_body_is_unpacked(served: Serving, coding: str) -> None:
    assert served.ask("POST", CHAT, BODY, {**JSON, "Content-Encoding": coding}).status == 415


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/static/../guard/gate.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/%2e%2e%2fapp.py", 404),
        ("GET", "/static/..%5capp.py", 404),
        ("GET", "/static//etc/passwd", 404),
        ("GET", "/static/index.html%00.js", 404),
        ("GET", "//evil.example/", 404),
        ("GET", "/v1/models/../../healthz", 404),
        ("GET", "/v1/models/", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("TRACE", "/", 405),
        ("DELETE", "/v1/models/fake", 405),
        ("POST", "/healthz", 405),
    ],
)
def test_paths_and_methods(served: Serving, method: str, path: str, status: int) -> None:
    response = served.ask(method, path)
    assert response.status == status
    assert b"passwd" not in response.read()


def test_an_image_of_another_page_reads_nothing(served: Serving) -> None:
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert served.ask("GET", "/v1/models", headers=image).status == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.ask("GET", "/v1/models", headers=link).status == 200
    headers = dict(served.ask("GET", "/v1/models").getheaders())
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_preflight_is_answered_for_added_origins_alone(served: Serving) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = served.ask("OPTIONS", CHAT, headers={**asks, "Origin": "https://app.example"})
    assert allowed.status == 204
    assert allowed.getheader("Access-Control-Allow-Origin") == "https://app.example"
    assert allowed.getheader("Access-Control-Allow-Headers") == "authorization,content-type"
    assert allowed.getheader("Access-Control-Allow-Credentials") is None
    assert allowed.getheader("Vary") == "Origin"
    for origin in ("http://evil.example", "null"):
        refused = served.ask("OPTIONS", CHAT, headers={**asks, "Origin": origin})
        assert refused.status == 403
        assert refused.getheader("Access-Control-Allow-Origin") is None
    answered = served.ask("POST", CHAT, BODY, {"Origin": "https://app.example"})
    assert answered.getheader("Access-Control-Allow-Origin") == "https://app.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong-horse-battery-staple"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer \u00e9"}, 401),
        ({"x-api-key": TOKEN[:-1]}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN}"}, 200),
        ({"x-api-key": TOKEN}, 200),
    ],
)
def test_tokens(locked: Serving, headers: Mapping[str, str], status: int) -> None:
    response = locked.ask("POST", CHAT, BODY, headers)
    assert response.status == status
    assert TOKEN.encode() not in response.read()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/status.json", 401), ("/v1/models", 401), ("/x", 401)],
)
def test_what_needs_a_token(locked: Serving, path: str, status: int) -> None:
    assert locked.ask("GET", path).status == status


def _said(served: Serving, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    with served.raw() as connection:
        connection.sendall(data)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found


def _request(*headers: str, body: bytes = BODY) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


CLOSE = "Connection: close"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        pytest.param(_request(CLOSE, LENGTH), [200], id="as it should be"),
        pytest.param(_request(CLOSE, LENGTH, "Content-Length: 3"), [400], id="two lengths"),
        pytest.param(_request(CLOSE, "Content-Length: +5", body=b"hello"), [400], id="a length with a sign"),
        pytest.param(_request(CLOSE, "Content-Length: 0x5", body=b"hello"), [400], id="a length in hexadecimal"),
        pytest.param(_request(CLOSE, "Transfer-Encoding: gzip, chunked"), [400, 501], id="codings in a row"),
        pytest.param(_request(CLOSE, "Transfer-Encoding: xchunked", LENGTH), [400, 501], id="a coding that is none"),
        pytest.param(_request(CLOSE, "Transfer-Encoding : chunked", LENGTH), [400], id="a space before the colon"),
        pytest.param(_request("X: a", " Transfer-Encoding: chunked", LENGTH, CLOSE), [200], id="a folded header"),
        pytest.param(_request(CLOSE, CHUNKED, body=b"zz\r\n"), [400], id="a chunk without a size"),
        pytest.param(_request(CLOSE, "X: a\nContent-Length: 0", LENGTH), [400], id="a bare line feed"),
        pytest.param(_request(CLOSE, "X: \x00", LENGTH), [400], id="a zero byte"),
        pytest.param(_request(CLOSE, LENGTH, f"Host: {HOST}"), [400], id="two hosts"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", [400], id="no host"),
        pytest.param(b"GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\nConnection: close\r\n\r\n", [403], id="another host"),
        pytest.param(_request(CLOSE, "X: " + "a" * 40_000, LENGTH), [400, 431], id="a header that is too long"),
        pytest.param(_request(CLOSE, *(f"X{n}: a" for n in range(6000)), LENGTH), [400, 431], id="too many headers"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [414], id="a path that is too long"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", [400], id="TLS to a server without"),
    ],
)  # fmt: skip
def test_requests_that_two_readers_would_read_differently(served: Serving, data: bytes, statuses: list[int]) -> None:
    answer = _said(served, data)
    assert answer.startswith(b"HTTP/1.1 ")
    assert int(answer[9:12]) in statuses
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_length_beside_chunks_hides_no_second_request(served: Serving) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    answer = _said(served, _request(CLOSE, CHUNKED, "Content-Length: 4", body=chunks + hidden))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'"status"' not in answer


def test_no_connection_becomes_a_websocket(served: Serving) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert served.ask("GET", "/v1/chat/completions", headers=upgrade).status == 405


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_its_time(served: Serving) -> None:
    answer = _said(served, _request("Content-Length: 100000", body=b"{"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


def test_a_head_that_does_not_come_closes_the_connection(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack_serve.guard.connections.HEAD_S", 0.1)
    began = monotonic()
    for data in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost:"):
        with served.raw() as connection:
            connection.sendall(data)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
    assert monotonic() - began < 30


def test_a_body_that_comes_behind_its_head_is_no_new_head(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.raw() as connection:
        connection.sendall(_request(LENGTH))
        assert _answer(connection).startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr("edgepack_serve.guard.connections.HEAD_S", 0.0)
        connection.sendall(_request(LENGTH, "Expect: 100-continue", body=b""))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # the head was read
        connection.sendall(BODY)
        assert _answer(connection).startswith(b"HTTP/1.1 200 ")


def _answer(connection: socket.socket) -> bytes:
    """Return one answer of a connection that stays open."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(1)
    length = int(found.lower().split(b"content-length:")[1].split()[0])
    while length:
        more = connection.recv(length)
        assert more
        found, length = found + more, length - len(more)
    return found


def test_a_header_without_end_closes_the_connection(served: Serving) -> None:
    with served.raw() as connection, suppress(ConnectionError):
        while True:
            connection.sendall(b"X: " + b"a" * 4000)
    assert served.ask("GET", "/healthz").status == 200


def test_a_head_in_pieces_is_one_request(served: Serving) -> None:
    with served.raw() as connection:
        for byte in _request(CLOSE, LENGTH):
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_names_by_what_a_server_is_bound_to() -> None:
    everywhere = Names.of("0.0.0.0")
    assert everywhere.knows("192.168.1.5:8080")
    assert everywhere.knows("[fe80::1]:8080")
    assert not everywhere.knows("evil.example")
    assert not Names.of("192.168.1.5").knows("localhost")
    assert Names.of().knows("localhost")
    assert not Names.of().knows("evil.example")


def test_levels_are_counted_and_not_followed() -> None:
    """A reader that follows them needs stack for each, and a thread may have little."""
    found: list[str] = []

    def decode() -> None:
        try:
            decoded(b'{"n": ' + b"[" * 90_000, 64)
        except UsageError as error:
            found.append(error.message)

    before = threading.stack_size(64 << 10)
    try:
        thread = threading.Thread(target=decode)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert found == ["The body has more than 64 levels."]
