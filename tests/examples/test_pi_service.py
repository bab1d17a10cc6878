"""The service: as its unit starts it, with a socket in the place of systemd's; and with models that make trouble."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Empty
from threading import Event, Thread
from typing import Any, BinaryIO

import programs
import pytest
import units
from units import Systemd, listening

from edgepack import Model, fake

UNIT = programs.FOLDER / "pi_service.service"
HELLO = {"messages": [{"role": "user", "content": "What is a token?"}]}
LONG = {**HELLO, "max_tokens": 4000}


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Its watchdog waits 0.2 s."""
    with listening(tmp_path) as (heard, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield heard


def connect(path: Path) -> BinaryIO:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(path))
    with client:
        return client.makefile("rwb", buffering=0)  # type: ignore[return-value]


def ask(client: BinaryIO, question: object) -> None:
    client.write(json.dumps(question).encode() + b"\n")


def answer(client: BinaryIO) -> tuple[str, dict[str, Any]]:
    """Return an answer's text and its last line."""
    text = ""
    while "text" in (line := json.loads(client.readline())):
        text += line["text"]
    return text, line


def serve(model: Model, path: Path, client: Callable[[], object]) -> None:
    """Run the service with a model, here in the main thread, while a client in another asks. Its return ends the
    service; one that sees it end itself returns after the end of its connection."""
    service, said, ended = programs.load("pi_service.py"), list[object](), Event()

    def asking() -> None:
        try:
            said.append(client())
        except BaseException as error:
            said.append(error)
        finally:
            if not ended.is_set():  # else nobody would hear the signal
                os.kill(os.getpid(), signal.SIGTERM)

    async def serving() -> None:
        running = asyncio.create_task(service.run(model, path))
        while not path.exists():
            await asyncio.sleep(0.01)
        thread.start()
        await running
        ended.set()

    thread = Thread(target=asking)
    with model:
        asyncio.run(serving())
    thread.join(60)
    assert not path.exists()
    if isinstance(said[0], BaseException):
        raise said[0]


def test_it_runs_as_its_unit_says(one_variant: Path, systemd: Systemd, tmp_path: Path) -> None:
    path = tmp_path / "llm.sock"
    places = {
        "/opt/edgepack/venv/bin/python": sys.executable,
        "/opt/edgepack/pi_service.py": str(programs.FOLDER / "pi_service.py"),
        "/opt/edgepack/model.edgepack": str(one_variant),
        "/run/edgepack/llm.sock": str(path),
    }
    with subprocess.Popen([places[word] for word in units.command(UNIT)], stderr=subprocess.PIPE) as program:
        systemd.hear("READY=1")
        for _ in range(3):
            systemd.hear("WATCHDOG=1")
        with connect(path) as client, connect(path) as other:
            ask(client, HELLO)
            ask(other, HELLO)
            first, last = answer(client)
            assert first.startswith("A token is a small piece of text")
            assert last == {"finish_reason": "stop", "tokens": last["tokens"]}
            assert answer(other) == (first, last)
        program.send_signal(signal.SIGTERM)
        systemd.hear("STOPPING=1")
        _, said = program.communicate(timeout=60)
    assert (program.returncode, said) == (0, b"")
    assert not path.exists()


def test_a_socket_that_cannot_be_made_is_said(one_variant: Path) -> None:
    ended = programs.run("pi_service.py", one_variant, "/nowhere/llm.sock")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "/nowhere/llm.sock: [Errno 2] No such file or directory\n"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_its_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/edgepack/venv/bin/python", sys.executable)
    assert units.complaints({UNIT.name: text}, tmp_path) == []


def test_what_is_wrong_is_said_and_the_next_line_answered(tmp_path: Path) -> None:
    def client() -> None:
        with connect(tmp_path / "s") as client:
            for line, words in [
                (b"hello", "malformed"),
                (b'{"messages": "hello"}', "Expected `array`"),
                (b'{"massages": []}', "unknown field `massages`"),
                (b'{"messages": [{"role": "king", "content": "Obey."}]}', "'king'"),
                (b'{"messages": [], "max_tokens": 0}', "max_tokens is 0"),
            ]:
                client.write(line + b"\n")
                assert words in answer(client)[1]["error"]
            ask(client, HELLO)
            assert answer(client) == ("Yes.", {"finish_reason": "stop", "tokens": 4})
            client.write(b"a" * 200_000)
            assert answer(client)[1] == {"error": "The line is longer than 64 KiB."}
            assert client.readline() == b""

    serve(fake.model(says="Yes."), tmp_path / "s", client)


def test_a_client_that_has_said_all_is_answered(tmp_path: Path) -> None:
    """As ``echo | socat`` does: it ends its side, and reads on."""

    def client() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(json.dumps(HELLO).encode())
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as reading:
                assert json.loads(reading.readlines()[-1]) == {"finish_reason": "stop", "tokens": 4}

    serve(fake.model(says="Yes."), tmp_path / "s", client)


def test_the_engine_stops_for_a_client_that_goes(tmp_path: Path) -> None:
    endless = programs.Endless()

    def client() -> None:
        with connect(tmp_path / "s") as going:
            ask(going, LONG)
            assert "text" in json.loads(going.readline())
            assert endless.stands.wait(60)
        with connect(tmp_path / "s") as staying:
            ask(staying, {**LONG, "max_tokens": 5})
            endless.go.set()
            assert answer(staying)[1] == {"finish_reason": "length", "tokens": 5}

    serve(endless.model, tmp_path / "s", client)
    assert endless.steps < 200


def test_a_stop_tells_all_who_are_served(systemd: Systemd, tmp_path: Path) -> None:
    endless = programs.Endless()

    def client() -> None:
        with connect(tmp_path / "s") as served, connect(tmp_path / "s") as waiting, connect(tmp_path / "s") as idle:
            ask(served, LONG)
            assert endless.stands.wait(60)
            ask(waiting, LONG)
            os.kill(os.getpid(), signal.SIGTERM)
            systemd.hear("STOPPING=1")
            endless.go.set()
            for each in (served, waiting, idle):
                assert answer(each)[1] == {"error": "The service stops."}
                assert each.readline() == b""

    serve(endless.model, tmp_path / "s", client)
    assert endless.steps < 200


def test_the_watchdog_hears_nothing_of_an_engine_that_stands_still(systemd: Systemd, tmp_path: Path) -> None:
    endless = programs.Endless()

    def client() -> None:
        with connect(tmp_path / "s") as client:
            systemd.hear("WATCHDOG=1")
            ask(client, {**LONG, "max_tokens": 100})
            assert endless.stands.wait(60)
            while not systemd.said.empty():
                systemd.said.get()
            with ExitStack() as others, pytest.raises(Empty):
                for _ in range(20):
                    other = others.enter_context(connect(tmp_path / "s"))
                    ask(other, {**LONG, "max_tokens": 1})  # who asks meanwhile makes it no better
                    systemd.hear("WATCHDOG=1", seconds=1)
            endless.go.set()
            assert answer(client)[1]["tokens"] == 100
            systemd.hear("WATCHDOG=1")

    serve(endless.model, tmp_path / "s", client)


def test_it_ends_with_an_engine_that_failed(systemd: Systemd, tmp_path: Path) -> None:
    def client() -> None:
        with connect(tmp_path / "s") as client:
            ask(client, HELLO)
            assert "failed at forward 3" in answer(client)[1]["error"]
            systemd.hear("STOPPING=1")
            assert answer(client)[1] == {"error": "The service stops."}
            assert client.readline() == b""

    serve(fake.model(says="Yes, but", fail_at=3), tmp_path / "s", client)
