"""Models that come and go, requests that wait, and clients that leave."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

import pytest
from serving import CHAT, HELLO, Serving, serving, until

from edgepack import Model, errors, fake
from edgepack.fake import FakeSession
from edgepack_serve.exchange import Terms
from edgepack_serve.hosting.settings import Settings

ENDLESS = [ord("a")] * 4096


class Held:
    """Models whose engine stands still at a step until it may go on."""

    def __init__(self, stands_at: int = 3) -> None:
        self.steps = 0
        self.stands, self.go = Event(), Event()
        self._stands_at = stands_at

    def model(self) -> Model:
        return fake.model(says=ENDLESS, before_step=self._step)

    def _step(self, session: FakeSession) -> None:
        self.steps += 1
        if self.steps == self._stands_at:
            self.stands.set()
            assert self.go.wait(60)


def in_thread(served: Serving, body: dict[str, Any]) -> tuple[Thread, list[tuple[int, dict[str, Any]]]]:
    answers: list[tuple[int, dict[str, Any]]] = []
    thread = Thread(target=lambda: answers.append(served.post(CHAT, body)))
    thread.start()
    return thread, answers


def state(served: Serving) -> dict[str, str]:
    return {each["name"]: each["state"] for each in served.host_status()}


def two(**settings: Any) -> dict[str, Any]:
    return {"models": {"a": fake.model, "b": fake.model}, "settings": Settings(**settings)}


def test_the_first_and_the_pinned_are_loaded_at_the_start_and_others_on_demand() -> None:
    models = dict.fromkeys("abc", fake.model)
    with serving(models, pinned=("c",)) as served:
        assert state(served) == {"a": "loaded", "b": "idle", "c": "loaded"}
        assert served.post(CHAT, {**HELLO, "model": "b", "max_tokens": 1})[0] == 200
        assert state(served) == dict.fromkeys("abc", "loaded")
        assert sorted(served.loaded) == ["a", "b", "c"]


def test_what_nobody_asks_for_is_unloaded_unless_it_is_pinned() -> None:
    with serving(**two(idle_s=0.05), pinned=("b",)) as served:
        until(lambda: state(served) == {"a": "idle", "b": "loaded"})
        assert served.post(CHAT, {**HELLO, "model": "a", "max_tokens": 1})[0] == 200
        until(lambda: state(served)["a"] == "idle")
        assert served.loaded.count("a") == 2


def test_a_client_of_ollamas_says_how_long_a_model_stays() -> None:
    with serving(**two(idle_s=None)) as served:
        loaded = {"done": True, "done_reason": "load"}
        status, answer = served.post("/api/chat", {"model": "b", "stream": False, "keep_alive": "1h"})
        assert (status, {name: answer[name] for name in loaded}) == (200, loaded)
        assert state(served) == {"a": "loaded", "b": "loaded"}
        running = json.loads(served.ask("GET", "/api/ps").read())["models"]
        expiry = {each["name"]: datetime.fromisoformat(each["expires_at"]) - datetime.now(UTC) for each in running}
        assert timedelta(minutes=50) < expiry["b:latest"] < timedelta(minutes=61)
        assert expiry["a:latest"] > timedelta(days=1000)
        unloaded = served.post("/api/generate", {"model": "b", "stream": False, "keep_alive": 0})[1]
        assert (unloaded["response"], unloaded["done_reason"]) == ("", "unload")
        until(lambda: state(served) == {"a": "loaded", "b": "idle"})


def test_a_model_that_answers_is_not_idle() -> None:
    held = Held()
    with serving({"fake": held.model, "b": fake.model}, settings=Settings(idle_s=0.05)) as served:
        thread, answers = in_thread(served, {**HELLO, "max_tokens": 5})
        assert held.stands.wait(30)
        assert served.post(CHAT, {**HELLO, "model": "b", "max_tokens": 1})[0] == 200
        until(lambda: state(served) == {"fake": "loaded", "b": "idle"})
        held.go.set()
        thread.join(30)
    assert answers[0][0] == 200


def test_where_the_memory_is_short_the_longest_idle_model_makes_room() -> None:
    room = 2
    open_models: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self) -> Model:
            if len(open_models) >= room:
                raise errors.ContextTooLargeError("It needs 3 GiB, and 1 GiB is free.")
            model = fake.model(says=self.name)
            close = model.close
            open_models.append(self.name)

            def closing() -> None:
                if self.name in open_models:
                    open_models.remove(self.name)
                close()

            model.close = closing  # type: ignore[method-assign]
            return model

    with serving({name: Counted(name) for name in "abcd"}, pinned=("a",)) as served:
        for name in "bcdb":
            answer = served.post(CHAT, {**HELLO, "model": name})[1]
            assert answer["choices"][0]["message"]["content"] == name
            assert open_models == ["a", name]
        room = 1
        status, answer = served.post(CHAT, {**HELLO, "model": "c"})
        assert status == 503, "the pinned one stays"
        assert "3 GiB" in answer["error"]["message"]


def test_a_model_that_fails_to_load_is_tried_again() -> None:
    fails = iter([False, True, False])

    def make() -> Model:
        if next(fails, False):
            raise errors.EngineError("The engine could not map its file.")
        return fake.model(says="Hi")

    with serving({"first": fake.model, "fake": make}) as served:
        assert served.post(CHAT, HELLO)[0] == 500
        assert served.post(CHAT, HELLO)[0] == 200


def test_an_engine_that_failed_is_loaded_again_for_the_next_request() -> None:
    with serving({"fake": lambda: fake.model(says="Good day!", fail_at=4)}) as served:
        status, answer = served.post(CHAT, HELLO)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert served.post(CHAT, {**HELLO, "max_tokens": 1})[0] == 200
        assert served.loaded == ["fake", "fake"]


def test_beyond_the_queue_a_client_is_told_when_to_come_again() -> None:
    held = Held()
    with serving({"fake": held.model}, settings=Settings(queue=1)) as served:
        waiting = [in_thread(served, {**HELLO, "max_tokens": 5}) for _ in range(2)]
        hosted = served.host.models["fake"]
        until(lambda: hosted.requests == 2)
        response = served.ask("POST", CHAT, HELLO)
        assert response.status == 429
        assert 1 <= int(response.getheader("Retry-After", "")) <= 600
        assert json.loads(response.read())["error"]["type"] == "rate_limit_error"
        figures = served.ask("GET", "/metrics").read().decode()
        assert 'edgepack_requests_running{model="fake"} 1\n' in figures
        assert 'edgepack_requests_waiting{model="fake"} 1\n' in figures
        held.go.set()
        for thread, _ in waiting:
            thread.join(30)
        assert [answers[0][0] for _, answers in waiting] == [200, 200]
        assert served.post(CHAT, {**HELLO, "max_tokens": 1})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "stands_at", "most"),
    [pytest.param("a" * 4000, 2, 6, id="in prefill"), pytest.param("Hi", 20, 1000, id="in decode")],
)
def test_the_engine_stops_for_a_client_that_goes(stream: bool, prompt: str, stands_at: int, most: int) -> None:
    held = Held(stands_at)
    asked = {**HELLO, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4000, "stream": stream}
    with serving({"fake": held.model}) as served:
        data = json.dumps(asked).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with served.raw() as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            assert held.stands.wait(30)
        hosted = served.host.models["fake"]
        until(lambda: served.server._uvicorn.server_state.connections == set())
        held.go.set()
        until(lambda: hosted.requests == 0)
        assert held.steps < most
        assert served.post(CHAT, {**HELLO, "max_tokens": 1})[0] == 200
        assert 'status="0"} 1\n' in served.ask("GET", "/metrics").read().decode() or stream


def test_a_client_that_closes_half_of_its_connection_has_gone() -> None:
    held = Held()
    with serving({"fake": held.model}) as served:
        data = json.dumps({**HELLO, "max_tokens": 4000}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with served.raw() as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            assert held.stands.wait(30)
            connection.shutdown(socket.SHUT_WR)
            held.go.set()
            assert connection.recv(100) == b""
        until(lambda: served.host.models["fake"].requests == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_cut_whether_its_engine_stops_or_not(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack_serve.underway._ENDS_S", 0.05)
    monkeypatch.setattr("edgepack_serve.underway._STUCK_S", 0.0)
    held = Held(20)
    with serving({"fake": held.model}, timeout_s=0.2) as served:
        response = served.ask("POST", CHAT, {**HELLO, "max_tokens": 4000, "stream": stream})
        text = response.read().decode()
        assert len(served.underway) == 1
        assert served.ask("GET", "/healthz").status == 503
        held.go.set()
        until(lambda: len(served.underway) == 0)
        assert served.ask("GET", "/healthz").status == 200
    assert response.status == (200 if stream else 504)
    error = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["code"] == "timeout"
    assert "longer than 0.2 s" in error["message"]


def test_a_client_that_does_not_read_is_given_up() -> None:
    with serving({"fake": lambda: fake.model(says=ENDLESS)}, terms=Terms(slow_s=0.2)) as served:
        hosted = served.host.models["fake"]
        with served.raw() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            data = json.dumps({**HELLO, "max_tokens": 4000, "stream": True, "n": 16}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            until(lambda: hosted.requests == 1)
            until(lambda: hosted.requests == 0)
            until(lambda: served.server._uvicorn.server_state.connections == set())


def test_a_stream_that_waits_says_that_it_lives() -> None:
    held = Held(2)
    with serving({"fake": held.model}, terms=Terms(alive_s=0.05)) as served:
        response = served.ask("POST", CHAT, {**HELLO, "max_tokens": 3, "stream": True})
        found = b""
        while b": waiting\n\n" not in found:
            found += response.read1(100)
        held.go.set()
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_many_at_once_are_all_answered() -> None:
    with serving({"fake": lambda: fake.model(says="Good day!")}, settings=Settings(queue=100)) as served:
        waiting = [in_thread(served, {**HELLO, "n": 1 + each % 3}) for each in range(50)]
        for thread, _ in waiting:
            thread.join(60)
        assert {answers[0][0] for _, answers in waiting} == {200}
        said = [each["message"]["content"] for _, [(_, answer)] in waiting for each in answer["choices"]]
        assert set(said) == {"Good day!"}
        until(lambda: served.host.models["fake"].requests == len(served.underway) == 0)
