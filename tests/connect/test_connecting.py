"""The door: what is a server's address and what is a bundle, whose the options are, and where a key may go."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from serving import Serving, serving
from web_servers import Request, response
from web_servers import serving as answering

import edgepack
from edgepack import FakeRuntime, fake
from edgepack_connect.address import read_address
from edgepack_connect.connecting import connect

SECRET = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving({"one": lambda: fake.model(says="One."), "two": lambda: fake.model(says="Two.")}) as running:
        yield running


@pytest.mark.parametrize(
    ("url", "base", "model"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", None),
        ("HTTP://LocalHost:8000/v1/", "http://localhost:8000", None),
        ("https://api.example.com/openai/v1", "https://api.example.com/openai", None),
        ("http://[::1]:8000/#a/b:1", "http://[::1]:8000", "a/b:1"),
        ("http://h#Qwen%2FQwen3", "http://h", "Qwen/Qwen3"),
    ],
)
def test_addresses(url: str, base: str, model: str | None) -> None:
    found = read_address(url)
    assert (found.base, found.model) == (base, model)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://", "names no server"),
        ("http://h:99999", "url is no address"),
        ("http://me:pass@h", "has a name or a password in it"),
        ("http://h/?key=abc", "has a query in it"),
        ("http://h/a b", "has the path"),
        ("http://ex\u00e4mple", "names no server"),
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(url: str, says: str) -> None:
    with pytest.raises(edgepack.UsageError, match=says) as caught:
        edgepack.connect(url)
    assert "pass@" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_loopback_is_this_machine() -> None:
    assert all(read_address(f"http://{host}").is_loopback for host in ("localhost", "127.0.0.1", "127.3.2.1", "[::1]"))
    assert not any(read_address(f"http://{host}").is_loopback for host in ("10.0.0.1", "localhost.example", "h"))


def test_a_model_is_named_where_there_are_several(served: Serving) -> None:
    with pytest.raises(edgepack.UsageError, match="the server has several: one, two"):
        edgepack.connect(served.url)
    for opened in (edgepack.connect(served.url, "two"), edgepack.connect(f"{served.url}/v1#two")):
        with opened as model:
            assert model.chat([{"role": "user", "content": "Hello"}]).text == "Two."
    with pytest.raises(edgepack.UsageError, match="beside the one that url names"):
        edgepack.connect(f"{served.url}#one", "two")


def test_a_model_that_there_is_not_is_an_error_of_the_question(served: Serving) -> None:
    with edgepack.connect(served.url, "three") as model, pytest.raises(edgepack.UsageError, match="404"):
        model.generate("Hello")


def test_one_string_opens_a_bundle_or_a_server(served: Serving, tmp_path: Path) -> None:
    bundle = small_bundle.write(tmp_path, [small_bundle.variant("fake-q4")])
    runtimes: Any = {"fake": FakeRuntime()}
    with edgepack.open(str(bundle), runtimes=runtimes, api_key="only for servers") as model:
        assert model.backend == "fake"
    with edgepack.open(f"{served.url}#one") as model:
        assert model.backend == "edgepack"

    async def opening() -> None:
        async with await edgepack.aopen(bundle, runtimes=runtimes) as model:
            assert isinstance(model, edgepack.Model)
        async with await edgepack.aconnect(served.url, "one") as model:
            assert (await model.agenerate("Hello", max_tokens=2)).usage.completion_tokens == 2

    asyncio.run(opening())


def test_an_option_of_the_other_is_refused_by_name(served: Serving, tmp_path: Path) -> None:
    for name, value in {"backend": "gguf", "context": 512, "kv_cache": "f16", "variant": "x", "strict": True}.items():
        with pytest.raises(edgepack.UsageError, match=f"{name} was given, and what answers is a server"):
            edgepack.open(f"{served.url}#one", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(edgepack.UsageError, match="model was given, and what answers is a bundle"):
        edgepack.open(tmp_path, "one")
    with pytest.raises(edgepack.BundleNotFoundError):
        edgepack.open(tmp_path / "nothing")
    with pytest.raises(edgepack.UsageError, match="no address of a server"):
        edgepack.connect("demo.edgepack")


@pytest.mark.parametrize("timeout_s", [0, -1, 1e9, True, "3"])
def test_a_time_that_is_none_is_refused(timeout_s: Any) -> None:
    with pytest.raises(edgepack.UsageError, match="timeout_s is"):
        edgepack.connect("http://127.0.0.1:1", timeout_s=timeout_s)


# A key


def one_model(request: Request) -> bytes:
    if request.headers.get("authorization") != f"Bearer {SECRET}":
        said = {"error": {"message": f"{request.headers.get('authorization')} and {SECRET} are no key"}}
        return response(401, json.dumps(said).encode(), content_type="application/json")
    if request.path == "/v1/models":
        return response(200, json.dumps({"data": [{"id": "m", "owned_by": "me"}]}).encode())
    if request.method == "GET":
        return response(404)
    return response(400, json.dumps({"error": {"message": f"no: {SECRET}"}}).encode())


def test_a_key_goes_with_each_question_and_into_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(one_model) as server:
        with edgepack.connect(server.url, api_key=SECRET) as model:
            assert SECRET not in repr(model) + repr(model.setup) + repr(vars(model))
            with pytest.raises(edgepack.UsageError, match="400: no: ") as caught:
                model.generate("Hello")
            assert SECRET not in str(caught.value) + repr(caught.value)
        monkeypatch.setenv("EDGEPACK_API_KEY", SECRET)
        edgepack.connect(server.url).close()
        monkeypatch.delenv("EDGEPACK_API_KEY")
        for key in (None, "wrong-key-0123456789"):
            with pytest.raises(edgepack.UsageError, match="takes no question from this user") as caught:
                edgepack.connect(server.url, api_key=key)
            assert "wrong-key" not in str(caught.value)


def test_a_key_is_not_sent_where_others_can_read_it() -> None:
    with pytest.raises(edgepack.UsageError, match="by plain http") as caught:
        edgepack.connect("http://10.0.0.1:8000", api_key=SECRET)
    assert SECRET not in str(caught.value)
    with pytest.raises(edgepack.UsageError, match="no header may have"):
        edgepack.connect("https://127.0.0.1", api_key="a\nb")


# What is imported, and when


def test_the_client_is_imported_by_the_door_alone() -> None:
    code = "import sys, edgepack; edgepack.connect, edgepack.open, edgepack.LanguageModel; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"httpx", "edgepack_connect"} & set(told.split())


def test_without_the_extra_the_command_that_installs_it_is_named() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "import edgepack\n"
        "try:\n    edgepack.connect('http://127.0.0.1:1')\n"
        "except edgepack.ExtraMissingError as error:\n    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "A model on a server needs httpx" in told
    assert "edgepack[connect]" in told


def test_nobody_answers() -> None:
    with pytest.raises(edgepack.EngineError, match=r"127.0.0.1 cannot be reached"):
        edgepack.connect("http://127.0.0.1:1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_connection_does_not_survive_a_fork(served: Serving) -> None:
    code = (
        "import os, sys, edgepack\n"
        f"model = edgepack.connect({served.url!r}, 'one')\n"
        "if os.fork() == 0:\n"
        "    try:\n        model.generate('Hello')\n"
        "    except edgepack.UsageError as error:\n        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(model.generate('Hello', max_tokens=1).finish_reason)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "A connection does not survive a fork. Connect again in the child.\nlength\n"


def test_a_stream_keeps_its_model(served: Serving) -> None:
    stream = edgepack.connect(served.url, "one").stream_chat([{"role": "user", "content": "Hello"}])
    gc.collect()
    with stream:
        assert "".join(piece.text for piece in stream) == "One."


def test_a_model_that_is_forgotten_ends_its_thread(served: Serving) -> None:
    model = connect(served.url, "one")
    thread = model._line._thread
    assert thread.is_alive()
    del model
    thread.join(30)
    assert not thread.is_alive()
