"""Servers on this machine that answer as a test says: bytes as they go over the wire, or silence."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Request:
    """What a client asked; the names of its headers are in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


Reply = Callable[[Request], bytes | Iterable[bytes] | None]
"""What goes over the wire for a request, at once or in pieces; None: nothing does, and the connection stays open."""


@dataclass
class Served:
    """A server that runs: its port, what it was asked, and how many bytes it could send."""

    port: int
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    def paths(self, method: str = "GET") -> list[str]:
        return [each.path for each in self.requests if each.method == method]


@contextmanager
def serving(reply: Reply, tls: ssl.SSLContext | None = None) -> Iterator[Served]:
    """Serve for the block, each connection for one request in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    served = Served(listening.getsockname()[1], "https" if tls else "http")
    over = threading.Event()

    def one(plug: socket.socket) -> None:
        with suppress(OSError), plug:
            if tls is not None:
                plug = tls.wrap_socket(plug, server_side=True)
            with suppress(OSError), plug:
                if (request := _request(plug)) is None:
                    return
                served.requests.append(request)
                if (answer := reply(request)) is None:
                    over.wait()
                    return
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    plug.sendall(piece)
                    served.sent += len(piece)
                plug.shutdown(socket.SHUT_WR)
                plug.settimeout(5)
                while plug.recv(1 << 16):  # until the client is done, so that nothing that was sent is lost
                    pass

    def all_of_them() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=[listening.accept()[0]], daemon=True).start()

    threading.Thread(target=all_of_them, daemon=True).start()
    try:
        yield served
    finally:
        over.set()
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _request(plug: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := plug.recv(1 << 16)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        if not (more := plug.recv(1 << 16)):
            return None
        body += more
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


def response(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """An answer as it goes over the wire; ``content_length="7"`` is a header, and takes the place of the right one."""
    named = {"content_length": str(len(body)), "connection": "close"} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} told\r\n{lines}\r\n".encode("latin-1") + body


def folder(place: Path, *, ranges: bool = True, cut: int | None = None) -> Reply:
    """A folder as web servers have it. ``cut`` ends each connection after so many bytes of a body."""

    def reply(request: Request) -> bytes:
        file = place / request.path.lstrip("/")
        if not file.is_file():
            return response(404, b"no such file")
        data = file.read_bytes()
        begin = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if ranges and asked:
            begin = int(asked[1])
        body = data[begin:]
        headers = {"content_length": str(len(body))}
        if ranges and asked:
            headers["content_range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return response(206 if ranges and asked else 200, body[:cut], **headers)

    return reply


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate for this machine, which a client trusts where ``SSL_CERT_FILE`` names the folder's cert.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    day = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(day - timedelta(1)).not_valid_after(day + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = made.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
