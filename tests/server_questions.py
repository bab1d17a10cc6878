"""What a server of models is asked, by way of the client: for a recording, and again when that is replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from web_servers import Request, Served, response, serving

import edgepack
from edgepack.language_model import LanguageModel

RECORDED = Path(__file__).parent / "connect" / "recorded"
USER = [{"role": "user", "content": "Name a colour."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


def text(model: LanguageModel) -> edgepack.Result:
    return model.generate("The capital of France is", max_tokens=6, temperature=0)


def chat(model: LanguageModel) -> edgepack.Result:
    return model.chat(USER, max_tokens=12, temperature=0)


def likely(model: LanguageModel) -> edgepack.Result:
    return model.chat(USER, max_tokens=3, temperature=0, logprobs=True, n_best=2)


def bound(model: LanguageModel) -> edgepack.Result:
    return model.chat(USER, max_tokens=60, temperature=0, json_schema=SCHEMA)


def digits(model: LanguageModel) -> edgepack.Result:
    return model.chat(USER, max_tokens=20, temperature=0, regex="[0-9]{3}")


def stopped(model: LanguageModel) -> edgepack.Result:
    return model.chat(USER, max_tokens=20, temperature=0, stop=" ")


def too_long(model: LanguageModel) -> edgepack.Result:
    return model.generate("word " * 1200, max_tokens=2)


QUESTIONS: Mapping[str, Callable[[LanguageModel], edgepack.Result]] = {
    each.__name__: each for each in (text, chat, likely, bound, digits, stopped, too_long)
}


def asked(model: LanguageModel) -> dict[str, edgepack.Result | edgepack.EdgepackError]:
    """Ask all of it, and return what each came to."""
    found: dict[str, edgepack.Result | edgepack.EdgepackError] = {}
    for name, question in QUESTIONS.items():
        try:
            found[name] = question(model)
        except edgepack.EdgepackError as error:
            found[name] = error
    return found


@contextmanager
def replayed(name: str) -> Iterator[Served]:
    """Serve a recording: a request that was not recorded just so is an error of the server's.

    One that was written by hand, after a server's documentation, answers any body of a path.
    """
    recording = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))

    def reply(request: Request) -> bytes:
        body = json.loads(request.body) if request.body else None
        for each in recording["exchanges"]:
            if (each["method"], each["path"]) == (request.method, request.path) and each.get("asked", body) == body:
                return response(each["status"], _bytes(each), content_type=each["type"])
        status = 404 if request.method == "GET" else 500
        return response(status, b'{"error": "this was not recorded"}', content_type="application/json")

    with serving(reply) as served:
        yield served


def _bytes(exchange: Mapping[str, Any]) -> bytes:
    if "events" in exchange:
        return "".join(f"data: {event}\n\n" for event in exchange["events"]).encode()
    if "lines" in exchange:
        return "".join(f"{json.dumps(line)}\n" for line in exchange["lines"]).encode()
    return json.dumps(exchange["answer"]).encode()


def record(host: str, port: int, source: str, file: Path) -> None:
    """Ask a real server all of it through a recorder, and write what it answered."""
    exchanges: list[dict[str, Any]] = []

    def reply(request: Request) -> bytes:
        there = HTTPConnection(host, port, timeout=600)
        headers = {"Content-Type": "application/json"} if request.body else {}
        there.request(request.method, request.path, request.body or None, headers)
        answer = there.getresponse()
        body, kind = answer.read().decode(), answer.getheader("Content-Type", "")
        there.close()
        told: dict[str, Any] = {"method": request.method, "path": request.path}
        if request.body:
            told["asked"] = json.loads(request.body)
        told |= {"status": answer.status, "type": kind}
        if kind.startswith("text/event-stream"):
            told["events"] = [block.removeprefix("data: ") for block in re.split(r"\n\n", body) if block]
        else:
            told["answer"] = json.loads(body) if body.startswith(("{", "[")) else body
        exchanges.append(told)
        return response(answer.status, body.encode(), content_type=kind)

    with serving(reply) as served, edgepack.connect(served.url.rstrip("/")) as model:
        print(model, {name: str(each) for name, each in asked(model).items()}, sep="\n")
    written = {"source": source, "recorded": True, "exchanges": exchanges}
    file.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    record(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
