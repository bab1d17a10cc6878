"""The web app, over a real connection: events, refusals, and a client that goes."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import programs
import pytest
import uvicorn

from edgepack import Model, fake

HELLO = {"messages": [{"role": "user", "content": "What is a token?"}]}


def post(port: int, question: object) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/chat", json.dumps(question), {"Content-Type": "application/json"})
    return connection.getresponse()


def events(response: HTTPResponse) -> list[tuple[str, dict[str, object]]]:
    """Return the name and the data of each event."""
    assert response.getheader("Content-Type", "").startswith("text/event-stream")
    found = []
    for block in response.read().decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


@contextmanager
def serving(model: Model) -> Iterator[int]:
    """Serve a model on a port of this machine, in a thread."""
    server = uvicorn.Server(uvicorn.Config(programs.load("web.py").make_app(model), port=0, log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    deadline = monotonic() + 30
    while not server.started:
        assert monotonic() < deadline
        sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def test_the_program_answers_and_ends(one_variant: Path) -> None:
    command = programs.command("web.py", one_variant, "--port", 0)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        while not (running := re.search(r"running on http://127.0.0.1:(\d+)", line := program.stderr.readline())):
            assert line, "it ended"
        port = int(running[1])
        said = events(post(port, HELLO))
        health = HTTPConnection("127.0.0.1", port, timeout=60)
        health.request("GET", "/health")
        assert json.loads(health.getresponse().read())["model"] == "demo"
        program.send_signal(signal.SIGTERM)
        _, rest = program.communicate(timeout=60)
    assert "".join(str(data["text"]) for name, data in said if name == "message").startswith("A token is a small piece")
    assert [(name, data["finish_reason"]) for name, data in said if name != "message"] == [("end", "stop")]
    assert len(said) > 5
    assert "tokens, then: stop" in rest
    assert "Traceback" not in rest


def test_what_cannot_be_honoured_is_refused_before_the_stream() -> None:
    with fake.model(says="Yes.") as model, serving(model) as port:
        king = post(port, {"messages": [{"role": "king", "content": "Obey."}]})
        error = json.loads(king.read())["error"]
        long = post(port, {"messages": [{"role": "user", "content": "a" * 5000}]})
        unknown = post(port, {**HELLO, "temprature": 1})
        bound = events(post(port, {**HELLO, "json_schema": {"const": "no"}}))
    assert (king.status, long.status, unknown.status) == (400, 400, 422)
    assert error["type"] == "UsageError"
    assert "king" in error["message"]
    assert error["hint"]
    assert json.loads(long.read())["error"]["type"] == "PromptTooLongError"
    assert "".join(str(data["text"]) for name, data in bound if name == "message") == '"no"'


def test_an_engine_that_fails_half_way_is_an_event_of_its_own() -> None:
    with fake.model(says="Yes, but", fail_at=3) as model, serving(model) as port:
        *texts, last = events(post(port, HELLO))
        again = post(port, HELLO)
        assert again.status == 503
        assert json.loads(again.read())["error"]["type"] == "EngineError"
    assert texts
    assert last[0] == "error"
    assert last[1]["type"] == "EngineError"


def test_the_engine_stops_for_a_client_that_goes(caplog: pytest.LogCaptureFixture) -> None:
    endless = programs.Endless()
    with caplog.at_level(logging.INFO, "uvicorn.error"), endless.model as model, serving(model) as port:
        response = post(port, {**HELLO, "max_tokens": 4000})
        assert response.readline().startswith(b"data: ")
        assert endless.stands.wait(30)
        response.close()
        endless.go.set()
        assert len(model.generate("Next", max_tokens=5).token_ids) == 5  # its turn comes once the other has ended
    assert endless.steps < 2000
    assert re.search(r"\d+ tokens, then: the client went", caplog.text)
