"""Clients that are many, slow or gone, and engines that die: the server lives, each request ends, and nothing grows."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from threading import Thread
from typing import Any

import pytest
from footprint import assert_flat, held
from serving import CHAT, HELLO, Serving, engines_of, serving, until

import edgepack
from edgepack import Model, fake
from edgepack_packager.build import Built
from edgepack_serve.exchange import Terms
from edgepack_serve.guard.bodies import Limits
from edgepack_serve.hosting.settings import Settings

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]
Making = Callable[[], Model]
ENDLESS = [ord("a")] * 4096
RESET = struct.pack("ii", 1, 0)
FOUR = Settings(parallel=4, queue=400)
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
SHORT = {**HELLO, "max_tokens": 4}

ASKED: list[tuple[str, Mapping[str, Any] | None, int]] = [
    (CHAT, SHORT, 200),
    (CHAT, {**SHORT, "stream": True}, 200),
    (CHAT, {**SHORT, "n": 2, "seed": 1, "temperature": 1}, 200),
    (CHAT, {**SHORT, "max_tokens": 40, "response_format": SCHEMA}, 200),
    (CHAT, {**SHORT, "logprobs": True, "top_logprobs": 3, "stream": True}, 200),
    (CHAT, {**SHORT, "temperature": -1}, 400),
    (CHAT, {**SHORT, "model": "none"}, 404),
    ("/v1/completions", {"model": "fake", "prompt": "Hello", "max_tokens": 4}, 200),
    ("/v1/responses", {"model": "fake", "input": "Hello", "max_output_tokens": 4, "stream": True}, 200),
    ("/v1/messages", {**SHORT, "stream": True}, 200),
    ("/api/chat", {**HELLO, "options": {"num_predict": 4}}, 200),
    ("/v1/models", None, 200),
    ("/status.json", None, 200),
    ("/metrics", None, 200),
    ("/nothing", None, 404),
]
"""What is asked, and the status of the answer."""


def ask(connection: HTTPConnection, path: str, body: object) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body)
    connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def head(body: bytes, more: str = "") -> bytes:
    """Return the head of a request for a chat."""
    lines = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode()


def assert_at_rest(served: Serving) -> None:
    """Nothing is under way, nobody is connected, and the next request is answered."""
    until(lambda: len(served.underway) == 0)
    until(lambda: all(each.requests == 0 for each in served.host.models.values()))
    assert served.post(CHAT, SHORT)[0] == 200
    until(lambda: served.server._uvicorn.server_state.connections == set())


@contextmanager
def others(served: Serving, clients: int = 4) -> Iterator[list[int]]:
    """Ask again and again meanwhile, by well-behaved clients; yield the statuses of their answers."""
    statuses: list[int] = []
    asking = True

    def client() -> None:
        while asking:
            statuses.append(served.post(CHAT, SHORT)[0])

    threads = [Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    try:
        yield statuses
    finally:
        asking = False
        for each in threads:
            each.join(60)


@pytest.fixture(params=["nothing", "gguf"])
def making(request: pytest.FixtureRequest) -> Making:
    """A model of nothing, and a small one on an engine."""
    if request.param == "nothing":
        return lambda: fake.model(sequences=4)
    bundle: Built = request.getfixturevalue("demo_bundle")
    return lambda: edgepack.load(bundle.path, "gguf", 256, variant="gguf-q4_k_m", threads=1, sequences=4)


def test_ten_thousand_requests_leave_nothing(making: Making, portion: Portion) -> None:
    whole = portion(10_000)
    with serving({"fake": making}, settings=FOUR) as served:

        def client(number: int, requests: int) -> None:
            drawing, connection = random.Random(number), HTTPConnection("127.0.0.1", served.port, timeout=60)
            for _ in range(requests):
                path, body, status = drawing.choice(ASKED)
                found, answer = ask(connection, path, body)
                assert found == status, (path, body, answer)
                if drawing.random() < 0.1:
                    connection.close()
                    leave(served, drawing)
            connection.close()

        def ask_all(requests: int) -> None:
            with ThreadPoolExecutor(6) as pool:
                for done in [pool.submit(client, number, requests // 6 + 1) for number in range(6)]:
                    done.result()
            assert_at_rest(served)

        ask_all(max(600, whole // 5))  # what is made once, and what allocators keep
        before = held()
        ask_all(whole)
        # Six threads scatter what they hold over allocators of their own; asyncio starts 32 threads at most.
        assert_flat(before, held(), 16384, pool=32)


def leave(served: Serving, drawing: random.Random) -> None:
    """Ask for a long answer, and go in the middle of the request, the prompt or the answer."""
    stream = drawing.random() < 0.7
    data = json.dumps({**HELLO, "max_tokens": 200, "stream": stream}).encode()
    request = head(data) + data
    with served.raw() as connection, suppress(ConnectionError):
        if drawing.random() < 0.3:
            connection.sendall(request[: drawing.randrange(len(request))])
        else:
            connection.sendall(request)
            if stream:
                connection.recv(drawing.randint(1, 2000))
        match drawing.randint(0, 2):
            case 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case 1:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass


def test_clients_that_vanish_leave_nothing_behind(portion: Portion, caplog: pytest.LogCaptureFixture) -> None:
    with serving({"fake": lambda: fake.model(says=ENDLESS, sequences=4)}, settings=FOUR) as served:
        with others(served) as statuses, ThreadPoolExecutor(20) as pool:
            for done in [pool.submit(leave, served, random.Random(each)) for each in range(portion(1000))]:
                done.result()
        assert set(statuses) == {200}
        assert_at_rest(served)
    assert not caplog.records  # nothing is written to whoever is not there


@pytest.mark.parametrize("queue", [400, 20])
def test_two_hundred_clients_at_once(queue: int, portion: Portion) -> None:
    settings, clients = Settings(parallel=4, queue=queue), 200
    with serving({"fake": lambda: fake.model(says="Good day!" * 20, sequences=4)}, settings=settings) as served:
        connections = [HTTPConnection("127.0.0.1", served.port, timeout=120) for _ in range(clients)]
        for _ in range(portion(10)):
            for number, each in enumerate(connections):  # all are there before one is read
                body = json.dumps({**HELLO, "stream": number % 2 == 0})
                each.request("POST", CHAT, body, {"Content-Type": "application/json"})
            responses = [each.getresponse() for each in connections]
            answers = [(each.status, each.getheader("Retry-After"), each.read()) for each in responses]
            told = [again for status, again, _ in answers if status == 429]
            good = [answer for status, _, answer in answers if status == 200]
            assert len(told) + len(good) == clients
            assert all(answer.endswith((b"data: [DONE]\n\n", b"}")) for answer in good)
            assert all(1 <= int(again or 0) <= 600 for again in told)
            assert len(good) >= min(clients, 4 + queue)
            assert queue < clients or not told
        for each in connections:
            each.close()
        assert_at_rest(served)


@pytest.mark.parametrize("sequences", [1, 4])
def test_slow_readers_are_given_up(sequences: int, portion: Portion) -> None:
    settings, terms = Settings(parallel=sequences, queue=400), Terms(slow_s=0.2)
    # Much is written for each token, so that little has to be computed to fill what the system keeps for a reader.
    asked = {**HELLO, "max_tokens": 4000, "stream": True, "logprobs": True, "top_logprobs": 20}
    data = json.dumps(asked).encode()
    with serving(
        {"fake": lambda: fake.model(says=ENDLESS, sequences=sequences)}, settings=settings, terms=terms
    ) as served:
        hosted = served.host.models["fake"]
        readers = [served.raw() for _ in range(portion(20))]
        try:
            for each in readers:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                each.sendall(head(data) + data)
            until(lambda: hosted.requests > 0)
            assert served.post(CHAT, SHORT)[0] == 200
            assert_at_rest(served)
        finally:
            for each in readers:
                each.close()


def test_slow_writers_hold_up_nobody(portion: Portion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack_serve.guard.connections.HEAD_S", 1.0)
    body = json.dumps(HELLO).encode()
    with serving({"fake": fake.model}, terms=Terms(limits=Limits(seconds=1.0)), settings=FOUR) as served:
        writers = [served.raw() for _ in range(portion(200))]
        for number, each in enumerate(writers):
            request = head(body) if number % 2 else head(body)[:40]
            each.sendall(request)
        assert served.post(CHAT, SHORT)[0] == 200
        for number, each in enumerate(writers):
            with each, suppress(ConnectionError):
                each.sendall(b"{" if number % 2 else b"a")
                assert each.recv(100)[:12] == (b"HTTP/1.1 408" if number % 2 else b"")
        assert_at_rest(served)


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_a_child_that_is_killed_under_load_ends_what_it_answers(
    engine: str, demo_bundle: Built, portion: Portion
) -> None:
    variant = {"gguf": "gguf-q4_k_m", "onnx": "onnx-int4_mixed"}[engine]
    load = {"variant": variant, "threads": 1, "sequences": 4, "isolate": True}
    long = {**HELLO, "max_tokens": 200, "regex": "[a-z]{200}"}
    endings: list[str] = []
    with serving({"fake": lambda: edgepack.load(demo_bundle.path, engine, 512, **load)}, settings=FOUR) as served:
        killing = True

        def client(number: int) -> None:
            while killing:
                response = served.ask("POST", CHAT, {**long, "stream": number % 2 == 0})
                answer = response.read().decode()
                last = answer.strip().split("\n\n")[-1].removeprefix("data: ")
                whole = last == "[DONE]" or "choices" in json.loads(last)
                assert whole or json.loads(last)["error"]["message"], answer
                endings.append("whole" if whole else f"{response.status}")

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            for _ in range(portion(20)):
                ended = len(endings)
                until(lambda: served.host.models["fake"].requests == 8)
                for pid in engines_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                until(lambda: len(endings) >= ended + 4)  # noqa: B023 - asked for within the round
            killing = False
            for each in clients:
                each.result(120)
        assert set(endings) <= {"whole", "200", "503"}
        assert set(endings) & {"200", "503"}  # a stream that is cut, or no answer
        assert_at_rest(served)
