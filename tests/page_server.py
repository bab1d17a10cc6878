"""A server for the page alone: its files, and answers to its questions as a test lets them come, piece by piece."""

from __future__ import annotations

import json
import mimetypes
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from edgepack_serve.doors.page import POLICY

PAGE = files("edgepack_serve") / "page"
MODEL = {
    "name": "smollm2",
    "state": "loaded",
    "bundle_id": "5f0c3b1e9a774d2c8b6e1f2a3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f",
    "variant": "gguf-q4_k_m",
    "backend": "gguf",
    "engine": "llama.cpp b6500",
    "device": "cpu",
    "context": 8192,
    "parallel": 4,
    "reason": "The fastest of the variants that fit into 12.1 GiB of free memory.",
    "memory_bytes": 271_000_000,
    "thinks": False,
    "tools": True,
    "system_role": True,
    "running": 1,
    "waiting": 0,
    "tokens_per_second": 42.4,
    "licence": "apache-2.0",
}
_WAIT_S = 300


@dataclass
class Answer:
    """An answer that comes as the test says; its client's end sets ``left``."""

    pieces: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    left: threading.Event = field(default_factory=threading.Event)

    def text(self, text: str) -> Answer:
        return self.chunk({"content": text})

    def thought(self, text: str) -> Answer:
        return self.chunk({"reasoning_content": text})

    def chunk(self, delta: Mapping[str, str], finish: str | None = None) -> Answer:
        return self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def event(self, data: object) -> Answer:
        self.pieces.put(f"data: {json.dumps(data)}\n\n".encode())
        return self

    def end(self, finish: str = "stop", tokens: int = 12, rate: float | None = 41.26) -> None:
        self.chunk({}, finish)
        self.event({"choices": [], "usage": {"completion_tokens": tokens}, "timings": {"decode_tps": rate}})
        self.pieces.put(b"data: [DONE]\n\n")
        self.cut()

    def cut(self) -> None:
        """End the connection, whatever is missing."""
        self.pieces.put(None)


@dataclass(frozen=True)
class Refusal:
    """An answer that is none."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class PageServer:
    """What is served, what comes next, and what was asked."""

    port: int = 0
    token: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    queued: queue.SimpleQueue[Answer | Refusal] = field(default_factory=queue.SimpleQueue)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, text: str | None = None) -> Answer:
        """Have the next question answered, at once where there is a text."""
        answer = Answer()
        self.queued.put(answer)
        if text is not None:
            if text:
                answer.text(text)
            answer.end()
        return answer

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.queued.put(Refusal(status, message, headers))


@contextmanager
def page_server() -> Iterator[PageServer]:
    """Serve for the block."""
    served = PageServer()
    served.facts = {
        "version": "0.1.0",
        "models": [dict(MODEL)],
        "memory": {"available_bytes": 13_000_000_000, "resident_bytes": 412_000_000},
        "uptime_s": 7384.0,
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    server.daemon_threads = True
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: PageServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/", "/status") or path.startswith("/static/"):
            name = {"/": "index.html", "/status": "status.html"}.get(path, path.removeprefix("/static/"))
            self._file(name)
        elif self._allowed():
            known = [model["name"] for model in self.served.facts["models"]]
            self._json({"data": [{"id": name} for name in known]} if path == "/v1/models" else self.served.facts)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        self.served.bodies.append(body)
        try:
            reply = self.served.queued.get(timeout=_WAIT_S)
        except queue.Empty:
            reply = Refusal(500, "The test expected no question.")
        if isinstance(reply, Refusal):
            self._json({"error": {"message": reply.message}}, reply.status, reply.headers)
        else:
            self._stream(reply)

    def _allowed(self) -> bool:
        if self.served.token is None or self.headers["Authorization"] == f"Bearer {self.served.token}":
            return True
        self._json({"error": {"message": "This server wants a token. Send it as Authorization: Bearer TOKEN."}}, 401)
        return False

    def _file(self, name: str) -> None:
        data = (PAGE / name).read_bytes()
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        self._head(200, {"Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": POLICY})
        self.wfile.write(data)

    def _json(self, data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        given = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **given})
        self.wfile.write(body)

    def _stream(self, answer: Answer) -> None:
        threading.Thread(target=self._watch, args=(answer,), daemon=True).start()
        with suppress(OSError, queue.Empty):
            self._head(200, {"Content-Type": "text/event-stream"})
            while (piece := answer.pieces.get(timeout=_WAIT_S)) is not None:
                self.wfile.write(piece)

    def _watch(self, answer: Answer) -> None:
        with suppress(OSError):
            self.connection.recv(1, socket.MSG_PEEK)
        answer.left.set()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
