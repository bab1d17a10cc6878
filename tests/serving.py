"""A server on a port of this machine, in a thread: over models that are made of nothing, or over bundles."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from edgepack import Memory, Model
from edgepack.device.planning import Candidate
from edgepack.runtime import Options
from edgepack_serve.app import Guards, make_app
from edgepack_serve.exchange import Terms
from edgepack_serve.figures import Figures
from edgepack_serve.guard.names import Names
from edgepack_serve.hosting.host import Host
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.hosting.opening import hosted, opened
from edgepack_serve.hosting.settings import Settings
from edgepack_serve.running import Certificate, Server
from edgepack_serve.sockets import bound
from edgepack_serve.underway import Underway

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
HERMES = """
{%- if tools %}{{ tools | tojson }} in <tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}
<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""
"""A chat template whose model writes calls as Hermes does."""


@dataclass
class Serving:
    """A server that runs."""

    port: int
    host: Host
    underway: Underway
    figures: Figures
    server: Server
    loaded: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**given, **(headers or {})})
        return connection.getresponse()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
        response = self.ask("POST", path, body, headers)
        return response.status, json.loads(response.read())

    def events(self, path: str, body: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return the data of each event of a stream, which ends as it should."""
        response = self.ask("POST", path, {**body, "stream": True})
        assert response.status == 200, response.read()
        assert response.getheader("Content-Type") == "text/event-stream"
        blocks = response.read().decode().split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2] if not block.startswith(":")]

    def host_status(self) -> list[dict[str, Any]]:
        """Return what is told of each model."""
        models: list[dict[str, Any]] = json.loads(self.ask("GET", "/status.json").read())["models"]
        return models

    def raw(self) -> socket.socket:
        """Return a connection of which the test says every byte."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = monotonic() + 30
    while not holds():
        assert monotonic() < deadline
        sleep(0.005)


def engines_of(pid: int) -> list[int]:
    """Return the processes of the engines that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    engines = []
    for line in found.stdout.split():
        with suppress(FileNotFoundError):
            words = Path(f"/proc/{line}/cmdline").read_bytes()
            engines += [int(line)] if b"resource_tracker" not in words else []
    return engines


def hosted_fake(name: str, model: Model, **fields: Any) -> Hosted:
    """Return what is known of a model before it is loaded, as the plan of a bundle gives it."""
    memory = Memory(0, 0, 0, 0, None)
    options = Options(context=model.context, threads=1, kv_cache="f32", sequences=model.setup.sequences)
    choice = Candidate(
        "fake-f32", "fake", "cpu", 32.0, True, options, memory, model.context, "1", reason="it is asked for"
    )
    return Hosted(name, name, model.manifest, model.bundle_id, choice, **fields)


@contextmanager
def serving(
    models: Mapping[str, Callable[[], Model]],
    *,
    settings: Settings | None = None,
    terms: Terms | None = None,
    timeout_s: float = 60.0,
    grace_s: float = 10.0,
    names: Names | None = None,
    token: str | None = None,
    pinned: tuple[str, ...] = (),
) -> Iterator[Serving]:
    """Serve models by name; each is made anew when it is loaded."""
    loaded: list[str] = []

    def opening(hosted: Hosted, settings: Settings) -> Model:
        loaded.append(hosted.name)
        return models[hosted.name]()

    known = []
    for name, make in models.items():
        with make() as model:
            known.append(hosted_fake(name, model, pinned=name in pinned))
    with _running(known, settings or Settings(), opening, terms, timeout_s, grace_s, names, token) as running:
        running.loaded = loaded
        yield running


@contextmanager
def serving_bundles(*words: str | Path, settings: Settings | None = None) -> Iterator[Serving]:
    """Serve bundles as the command line names them."""
    asked = settings or Settings()
    with _running(hosted([str(each) for each in words], asked), asked, opened, None, 60, 10, None, None) as running:
        yield running


@contextmanager
def _running(
    known: list[Hosted],
    settings: Settings,
    opening: Callable[[Hosted, Settings], Model],
    terms: Terms | None,
    timeout_s: float,
    grace_s: float,
    names: Names | None,
    token: str | None,
    certificate: Certificate | None = None,
) -> Iterator[Serving]:
    figures, underway = Figures(), Underway(timeout_s)
    host = Host(known, settings, figures, opening)
    guards = Guards(names=names or Names.of("127.0.0.1"), token=token)
    app = make_app(host, underway, figures, guards, terms or Terms())
    server = Server(app, host, underway, certificate=certificate, grace_s=grace_s)
    listening, ready = bound("127.0.0.1", 0), Event()
    port = listening.getsockname()[1]
    thread = Thread(target=lambda: asyncio.run(server.run([listening], ready.set, signals=False)))
    thread.start()
    assert ready.wait(60)
    try:
        yield Serving(port, host, underway, figures, server)
    finally:
        server.stop_from_elsewhere()
        thread.join(30)
    assert not thread.is_alive()
