"""What a client tells a server, and where it lets itself be sent: no secret to another, none where others listen."""

from __future__ import annotations

import json
import os
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_servers import Request, Served, response, self_signed, serving

from edgepack.errors import TransferError, UsageError
from edgepack_ship.registry import authorization, credentials
from edgepack_ship.registry.authorization import Challenge, Credentials
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.connection import Patience

KNOWN = Credentials("packer", "let me in")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for this machine, which a client trusts where ``SSL_CERT_FILE`` names it."""
    return self_signed(tmp_path)


@pytest.fixture
def trusted(certificate: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    return certificate


def asking(served: Served, **options: object) -> Client:
    options = {"wait": lambda _: None, "credentials": lambda _: KNOWN} | options
    return Client(served.url, **options)  # type: ignore[arg-type]


def fetch(client: Client, url: str) -> bytes:
    return client.fetch(url, 1000, "it")


def told(server: Served) -> list[str | None]:
    return [each.headers.get("authorization") for each in server.requests]


def test_nothing_is_told_to_who_does_not_ask() -> None:
    def asked(host: str) -> Credentials:
        raise AssertionError(host)

    with serving(lambda _: response(200, b"open")) as server:
        assert fetch(asking(server, credentials=asked), server.url) == b"open"
    assert told(server) == [None]


def closed(request: Request) -> bytes:
    if request.headers.get("authorization") == KNOWN.basic():
        return response(200, b"open")
    return response(401, www_authenticate='Basic realm="here"')


def test_who_asks_is_told_from_then_on() -> None:
    with serving(closed) as server:
        client = asking(server)
        assert fetch(client, server.url) + fetch(client, server.url) == b"openopen"
    assert told(server) == [None, KNOWN.basic(), KNOWN.basic()]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_who_it_is_sent_on_to_is_told_nothing(status: int) -> None:
    with serving(lambda _: response(200, b"elsewhere")) as other:

        def sending(request: Request) -> bytes:
            return response(status, location=other.url + "x") if closed(request).endswith(b"open") else closed(request)

        with serving(sending) as server:
            assert fetch(asking(server), server.url) == b"elsewhere"
    assert told(server) == [None, KNOWN.basic()]
    assert told(other) == [None]


def test_another_that_asks_is_told_nothing() -> None:
    with (
        serving(closed) as other,
        serving(lambda _: response(302, location=other.url)) as server,
        pytest.raises(TransferError, match=rf"127.0.0.1:{other.port} does not give it"),
    ):
        fetch(asking(server), server.url)
    assert told(other) == [None]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///etc/passwd", "no web address"),
        ("ftp://127.0.0.1/x", "no web address"),
        ("http://user:word@127.0.0.1/x", "no web address"),
        ("http://[::1", "no web address"),
        ("http://127.0.0.1:99999/", "no web address"),
        ("", "no web address"),
        ("http://mirror.example/x", "plain http"),
        ("//mirror.example/x", "plain http"),
    ],
)
def test_places_it_does_not_let_itself_be_sent_to(location: str, says: str) -> None:
    with serving(lambda _: response(302, location=location)) as server, pytest.raises(TransferError, match=says):
        fetch(asking(server), server.url)


def test_a_circle_of_redirects_ends() -> None:
    with (
        serving(lambda _: response(302, location="/again")) as server,
        pytest.raises(TransferError, match="more than 5 times"),
    ):
        fetch(asking(server), server.url)
    assert len(server.requests) == 6


def test_https_is_not_left_for_http(trusted: ssl.SSLContext) -> None:
    with serving(lambda _: response(200, b"overheard")) as other:
        with (
            serving(lambda _: response(302, location=other.url), trusted) as server,
            pytest.raises(TransferError, match="from https to plain http"),
        ):
            fetch(asking(server), server.url)
        bearer = f'Bearer realm="{other.url}token"'
        with (
            serving(lambda _: response(401, www_authenticate=bearer), trusted) as server,
            pytest.raises(TransferError, match="from https to plain http"),
        ):
            fetch(asking(server), server.url)
    assert other.requests == []


def test_a_certificate_is_checked(certificate: ssl.SSLContext) -> None:
    with serving(closed, certificate) as server, pytest.raises(TransferError, match="does not trust: self-signed"):
        fetch(asking(server), server.url)
    assert server.requests == []


def test_a_trusted_certificate_is_taken(trusted: ssl.SSLContext) -> None:
    with serving(closed, trusted) as server:
        assert fetch(asking(server), server.url) == b"open"


def test_a_body_that_drips_behind_tls_is_not_waited_for(trusted: ssl.SSLContext) -> None:
    gone = threading.Event()

    def dripping(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n"
        while not gone.wait(0.01):
            yield b"."

    with serving(dripping, trusted) as server, pytest.raises(TransferError, match="does not answer in time, 6 times"):
        fetch(asking(server, patience=Patience(block=0.2)), server.url)
    gone.set()


def test_plain_http_is_for_this_machine_unless_it_is_allowed() -> None:
    for host in ("registry.example", "10.0.0.7:5000", "localhost.example"):
        with pytest.raises(UsageError, match=r"plain http.*--plain-http"):
            Client(f"http://{host}/")
        Client(f"http://{host}/", plain_http=True)
    Client("http://localhost:5000/")


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: response(200, b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        client = Client("http://registry.example/", plain_http=True)
        assert fetch(client, "http://registry.example/v2/") == b"by proxy"
    assert proxy.paths() == ["http://registry.example/v2/"]


def test_an_expired_token_is_asked_for_anew() -> None:
    given = iter(["first", "second"])

    def reply(request: Request) -> bytes:
        if request.path.startswith("/token"):
            assert request.path == "/token?service=here&scope=repository%3Aa%3Apull"
            return response(200, json.dumps({"access_token": next(given)}).encode())
        if request.headers.get("authorization") in ("Bearer first", "Bearer second") and request.path == "/one":
            return response(200, b"1")
        if request.headers.get("authorization") == "Bearer second":
            return response(200, b"2")
        return response(401, www_authenticate='Bearer realm="/token",service="here",scope="repository:a:pull"')

    with serving(reply) as server:
        client = asking(server)
        assert fetch(client, server.url + "one") + fetch(client, server.url + "two") == b"12"


def test_an_identity_token_is_sent_in_a_form() -> None:
    def reply(request: Request) -> bytes:
        if request.method == "POST":
            assert b"grant_type=refresh_token" in request.body
            assert b"refresh_token=long+lived" in request.body
            return response(200, b'{"token": "short"}')
        if request.headers.get("authorization") == "Bearer short":
            return response(200, b"open")
        return response(401, www_authenticate='Bearer realm="/token",service="here"')

    with serving(reply) as server:
        known = Credentials("", "long lived", identity=True)
        assert fetch(asking(server, credentials=lambda _: known), server.url) == b"open"


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": 1}', b"\xff"])
def test_what_is_no_token_is_not_told(answer: bytes) -> None:
    def reply(request: Request) -> bytes:
        return response(200, answer) if request.path == "/t" else response(401, www_authenticate="Bearer realm=/t")

    with serving(reply) as server, pytest.raises(TransferError, match="without a token"):
        fetch(asking(server), server.url)


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ('Bearer realm="https://a.example/t",service="s",scope="x:y:pull,push"',
         Challenge("bearer", "https://a.example/t", "s", "x:y:pull,push")),
        ("basic realm=here", Challenge("basic")),
        ('Basic realm="x", Bearer realm="https://a.example/t"', Challenge("bearer", "https://a.example/t")),
        ("Negotiate", None),
        ("", None),
        ("Bearer " + "a" * 60_000, None),
    ],
)  # fmt: skip
def test_challenges(header: str, meant: Challenge | None) -> None:
    assert authorization.challenge(header) == meant


def test_a_refusal_holds_no_secret() -> None:
    secret = "X-Amz-Signature=0123456789abcdef"
    with (
        serving(lambda _: b"") as cut,
        serving(lambda _: response(302, location=f"{cut.url}?{secret}")) as server,
        pytest.raises(TransferError, match="cut the connection") as refused,
    ):
        fetch(asking(server), server.url)
    assert "0123456789abcdef" not in str(refused.value)
    assert "let me in" not in repr(KNOWN)


def test_an_unknown_server_is_told_at_once() -> None:
    with serving(closed) as server:
        pass
    waits: list[float] = []
    with pytest.raises(TransferError, match=f"127.0.0.1:{server.port} cannot be reached"):
        fetch(Client(server.url, wait=waits.append, patience=Patience(reach=1)), server.url)
    assert waits == []


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "config.json"


def auth(user: str, password: str) -> str:
    return b64encode(f"{user}:{password}".encode()).decode()


def test_credentials_of_the_docker_configuration(docker: Path) -> None:
    assert credentials.find("a.example") is None
    auths = {
        "a.example": {"auth": auth("ann", "a:b")},
        "https://b.example:5000/v1/": {"username": "bob", "password": "b"},
        "https://index.docker.io/v1/": {"auth": auth("dora", "d")},
        "c.example": {"identitytoken": "long", "auth": auth("<token>", "")},
        "d.example": {},
        "e.example": {"auth": "not base64!"},
    }
    docker.write_text(json.dumps({"auths": auths, "psFormat": "x"}))
    assert credentials.find("a.example") == Credentials("ann", "a:b")
    assert credentials.find("b.example:5000") == Credentials("bob", "b")
    assert credentials.find("registry-1.docker.io") == Credentials("dora", "d")
    assert credentials.find("c.example") == Credentials("", "long", identity=True)
    assert [credentials.find(f"{host}.example") for host in ("d", "e", "f")] == [None, None, None]


def test_credentials_of_a_helper(docker: Path) -> None:
    helper = docker.parent / "docker-credential-kept"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$1 $host" = "get a.example" ] && echo \'{"Username": "ann", "Secret": "s"}\'\n'
    )
    helper.chmod(0o755)
    docker.write_text(json.dumps({"credHelpers": {"a.example": "kept", "b.example": "lost", "c.example": "../x"}}))
    assert credentials.find("a.example") == Credentials("ann", "s")
    with pytest.raises(TransferError, match="docker-credential-lost"):
        credentials.find("b.example")
    with pytest.raises(TransferError, match="no name of a credential helper"):
        credentials.find("c.example")
    docker.write_text(json.dumps({"credsStore": "kept"}))
    assert credentials.find("a.example") == Credentials("ann", "s")
    assert credentials.find("d.example") is None


def test_credentials_of_the_environment_come_first(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.write_text("{not json")
    with pytest.raises(TransferError, match="no configuration of Docker's"):
        credentials.find("a.example")
    monkeypatch.setenv("EDGEPACK_REGISTRY_USER", "eve")
    monkeypatch.setenv("EDGEPACK_REGISTRY_PASSWORD", "e")
    assert credentials.find("a.example") == Credentials("eve", "e")
