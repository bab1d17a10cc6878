"""``edgepack serve`` as its users start it: sockets, signals, systemd, TLS, children that die."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from serving import engines_of

from edgepack.cli import main
from edgepack.errors import UsageError
from edgepack_serve.guard import tokens

QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "What is a token?"}]}
LONG = {**QUESTION, "stream": True, "n": 4, "max_tokens": 400, "regex": "[a-z]{400}"}


@contextmanager
def serve(*arguments: object, env: Mapping[str, str] | None = None, **more: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edgepack", "serve", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(env or {})}, **more
    ) as it:
        try:
            yield it
        finally:
            if it.poll() is None:
                it.kill()
            it.communicate(timeout=60)


def port_of(program: subprocess.Popen[str]) -> int:
    """Return the port that a server tells, once it serves."""
    screen = screen_of(program)
    found = re.search(r"edgepack serves .* at https?://[\d.]+:(\d+)", screen)
    assert found, screen or program.communicate(timeout=60)[1]
    assert f":{found[1]}/v1/chat/completions --json " in screen
    return int(found[1])


def screen_of(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    lines = [program.stdout.readline()]
    while lines[-1] and not lines[-1].startswith("Next: "):
        lines.append(program.stdout.readline())
    return "".join(lines)


def ask(connection: HTTPConnection, body: object = QUESTION, **headers: str) -> tuple[int, dict[str, Any]]:
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", **headers}
    )
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


class OverUnix(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def test_it_serves_and_a_grace_lets_an_answer_end(one_variant: Path) -> None:
    with serve(one_variant, "--port", 0, "--grace", 60) as program:
        port = port_of(program)
        status, answer = ask(HTTPConnection("127.0.0.1", port, timeout=60))
        assert (status, said(answer)[:7]) == (200, "A token")
        asking = HTTPConnection("127.0.0.1", port, timeout=60)
        asking.request("POST", "/v1/chat/completions", json.dumps(LONG), {"Content-Type": "application/json"})
        response = asking.getresponse()
        begun = response.read1(10)
        program.send_signal(signal.SIGTERM)
        health = HTTPConnection("127.0.0.1", port, timeout=60)
        status = 200
        with suppress(OSError):  # it may have ended by then
            while status == 200:
                health.request("GET", "/readyz")
                ready = health.getresponse()
                status = ready.status
                ready.read()
            assert status == 503
        assert (begun + response.read()).endswith(b"data: [DONE]\n\n")
        _, err = program.communicate(timeout=60)
        assert program.returncode == 0
    assert "event=stopping" in err
    assert "What is a token" not in err
    assert "Traceback" not in err


def test_without_grace_an_answer_is_cut_and_says_so(one_variant: Path) -> None:
    with serve(one_variant, "--port", 0, "--grace", 0) as program:
        asking = HTTPConnection("127.0.0.1", port_of(program), timeout=60)
        asking.request("POST", "/v1/chat/completions", json.dumps(LONG), {"Content-Type": "application/json"})
        response = asking.getresponse()
        response.read1(10)
        program.send_signal(signal.SIGINT)
        last = response.read().decode().strip().split("\n\n")[-1]
        program.communicate(timeout=60)
        assert program.returncode == 0
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"


def test_a_unix_socket_is_there_while_it_serves(one_variant: Path, tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:  # of a server that was killed
        left.bind(str(path))
    with serve(one_variant, "--unix", path) as program:
        assert str(path) in screen_of(program)
        assert path.stat().st_mode & 0o777 == 0o660
        assert ask(OverUnix(path))[0] == 200
        assert ask(OverUnix(path), Host="evil.example")[0] == 403
        with serve(one_variant, "--unix", path) as second:
            assert "in use by another server" in second.communicate(timeout=60)[1]
            assert second.returncode == 1
        assert ask(OverUnix(path))[0] == 200
        program.terminate()
        program.communicate(timeout=60)
    assert not path.exists()


def test_systemd_gives_a_socket_and_hears_of_it(one_variant: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, socket.create_server(("127.0.0.1", 0)) as given:
        systemd.bind(address)
        systemd.settimeout(60)
        port = given.getsockname()[1]
        # As systemd does: the socket is descriptor 3, and the variable names the process itself.
        code = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); " \
            "os.execv(sys.executable, [sys.executable, '-m', 'edgepack', 'serve', sys.argv[2]])"  # fmt: skip
        env = {"LISTEN_FDS": "1", "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        command = [sys.executable, "-c", code, str(given.fileno()), str(one_variant)]
        with subprocess.Popen(
            command, env={**os.environ, **env}, pass_fds=[given.fileno()], stdout=subprocess.DEVNULL
        ) as program:
            words = [systemd.recv(100)]
            assert ask(HTTPConnection("127.0.0.1", port, timeout=60))[0] == 200
            while words.count(b"WATCHDOG=1") < 2:
                words.append(systemd.recv(100))
            program.terminate()
            while words[-1] != b"STOPPING=1":
                words.append(systemd.recv(100))
            assert program.wait(60) == 0
    assert b"READY=1" in words


def test_tls_by_certificate_files(one_variant: Path, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(chain))
    with serve(one_variant, "--port", 0, "--tls-cert", chain, "--tls-key", key) as program:
        port = port_of(program)
        asking = HTTPSConnection("localhost", port, timeout=60, context=trusting)
        assert ask(asking)[0] == 200
        asking.request("POST", "/v1/chat/completions", json.dumps(LONG), {"Content-Type": "application/json"})
        assert asking.getresponse().read().endswith(b"data: [DONE]\n\n")
        same = f"https://localhost:{port}"
        assert ask(HTTPSConnection("localhost", port, timeout=60, context=trusting), Origin=same)[0] == 200
        plain = HTTPConnection("127.0.0.1", port, timeout=60)
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system calls it
            ask(plain)


def test_an_address_that_others_reach_needs_a_token(one_variant: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple\n")
    with serve(one_variant, "--host", "0.0.0.0", "--port", 0, "--token-file", token) as program:
        port = port_of(program)
        assert ask(HTTPConnection("127.0.0.1", port, timeout=60))[0] == 401
        given = {"x-api-key": "correct-horse-battery-staple"}
        assert ask(HTTPConnection("127.0.0.1", port, timeout=60), **given)[0] == 200


def test_a_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_TOKEN", "correct-horse-battery-staple")
    assert tokens.read(None) == "correct-horse-battery-staple"
    for weak in ("short", "with spaces in it, and long", "not-of-ascii-\u00e9\u00e9\u00e9\u00e9"):
        monkeypatch.setenv("EDGEPACK_TOKEN", weak)
        with pytest.raises(UsageError, match="at least 16"):
            tokens.read(None)


def test_a_child_that_is_killed_is_an_error_of_what_it_answers_alone(one_variant: Path) -> None:
    with serve(one_variant, "--port", 0, "--isolate", "--parallel", 4) as program:
        port = port_of(program)
        (child,) = engines_of(program.pid)
        asking = [HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(4)]
        for each in asking:
            body = json.dumps({**LONG, "n": 1})
            each.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        responses = [each.getresponse() for each in asking]
        for response in responses:
            response.read1(10)
        os.kill(child, signal.SIGKILL)
        for response in responses:
            last = response.read().decode().strip().split("\n\n")[-1]
            assert "error" in json.loads(last.removeprefix("data: "))
        assert ask(HTTPConnection("127.0.0.1", port, timeout=60))[0] == 200
        (other,) = engines_of(program.pid)
        assert other != child


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--host", "0.0.0.0"], "there is no token", 2),
        (["--host", "nowhere.invalid", "--token-file", "TOKEN"], "no address of this machine", 2),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key are given together", 2),
        (["--tls-cert", "TOKEN", "--tls-key", "TOKEN"], "no certificate and its key", 2),
        (["--token-file", "missing"], "cannot be read", 2),
        (["--origin", "app.example"], "no origin", 2),
        (["--pin", "other"], "not served", 2),
        (["--parallel", "0"], "--parallel", 2),
        (["nothing.edgepack"], "nothing.edgepack", 1),
        (["demo=again.edgepack"], "again.edgepack", 1),
        (["--port", "PORT"], "is in use", 1),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    one_variant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, code: int
) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"TOKEN": str(token), "PORT": str(taken.getsockname()[1])}
        asked = ["serve", str(one_variant), "--port", "0", *(given.get(each, each) for each in arguments)]
        assert main(asked) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith("error: ")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of this machine's own, and its key."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private
