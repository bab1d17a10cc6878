"""Ask the household's server, from any machine with Python 3.11: nothing needs to be installed.

export EDGEPACK_TOKEN=$(cat token)
python ask.py http://pi.local:8080 "What is a token?"
python ask.py http://pi.local:8080 --model large --file letter.txt "Sum this up in two sentences."
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


class RefusedError(Exception):
    """What the server said instead of an answer."""


def call(server: str, path: str, body: object = None) -> Iterator[bytes]:
    """Yield the lines of an answer as they come. Raises ``RefusedError``."""
    headers = {"Authorization": f"Bearer {os.environ.get('EDGEPACK_TOKEN', '')}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(f"{server}{path}", data, headers), timeout=600) as response:
            yield from response
    except HTTPError as refusal:
        said = refusal.read().decode(errors="replace")
        if refusal.headers.get_content_type() == "application/json":
            said = json.loads(said)["error"]["message"]
        busy = refusal.headers.get("Retry-After")
        raise RefusedError(f"{said} Try again in {busy} s." if busy else said) from None
    except (URLError, OSError) as error:
        raise RefusedError(f"{server} does not answer: {getattr(error, 'reason', error)}.") from None


def models(server: str) -> list[str]:
    """Return the names of the models, the first first."""
    told = json.loads(b"".join(call(server, "/v1/models")))
    return [each["id"] for each in told["data"]]


def answer(server: str, model: str, question: str) -> Iterator[str]:
    """Yield the pieces of an answer."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True}
    for line in call(server, "/v1/chat/completions", body):
        field, _, value = line.decode().strip().partition(": ")
        if field == "data" and value != "[DONE]":
            event: dict[str, Any] = json.loads(value)
            if "error" in event:  # after a part of the answer
                raise RefusedError(event["error"]["message"])
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask the household's server.")
    parser.add_argument("server", help="its address, as http://pi.local:8080")
    parser.add_argument("question")
    parser.add_argument("--model", help="one of its models; without it the first")
    parser.add_argument("--file", type=Path, help="a text that the question is about")
    given = parser.parse_args()
    server = given.server.rstrip("/")
    try:
        question = f"{given.question}\n\n{given.file.read_text('utf-8')}" if given.file else given.question
        for piece in answer(server, given.model or models(server)[0], question):
            print(piece, end="", flush=True)
        print()
    except (RefusedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
