"""What ``edgepack serve`` shows when it begins: the models, the engines and why, the address, the next step."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.cli.screen import out, say, styled, table
from edgepack.cli.spelling import spelled
from edgepack.device.memory import human
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.hosting.settings import Settings


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is: a URL, and the path of its Unix socket, None where it listens on the network."""

    url: str
    unix: Path | None = None

    @classmethod
    def of(cls, listening: socket.socket, unix: Path | None, tls: bool) -> Address:
        """Return the address of a socket that listens."""
        scheme = "https" if tls else "http"
        if listening.family == socket.AF_UNIX:
            return cls(f"{scheme}://localhost", unix or Path(str(listening.getsockname())))
        host, port = listening.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return cls(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")


def show(models: Sequence[Hosted], settings: Settings, address: Address, token: bool) -> None:
    """Print the screen on standard output."""
    from rich.text import Text

    console = out()
    where = address.url if address.unix is None else str(address.unix)
    say(console, styled("bold", f"edgepack serves {_counted(models)} at {where}"))
    console.print()
    rows = table("model", "variant", "engine", "context", "memory", "", right=("context", "memory"))
    for each in models:
        choice = each.choice
        engine = f"{choice.runtime} on {choice.device}"
        state = "pinned" if each.pinned else "loaded" if each.model is not None else "on demand"
        context, memory = str(choice.options.context), human(choice.memory.total)
        rows.add_row(each.name, choice.variant, engine, context, memory, state)
    console.print(rows)
    for each in models:
        before = "why" if len(models) == 1 else each.name
        say(console, Text(f"{before}: {spelled(each.choice.reason)}", "dim"))
    console.print()
    if address.unix is None:
        say(console, f"Page       {address.url}/")
        say(console, f"OpenAI     base_url {address.url}/v1, api_key {'the token' if token else 'any'}")
        say(console, f"Others     Anthropic's and Ollama's clients at {address.url}")
    body = json.dumps({"model": models[0].name, **_example(models[0])})
    path = "/v1/chat/completions" if models[0].manifest.embedding is None else "/v1/embeddings"
    through = "" if address.unix is None else f"--unix-socket {address.unix} "
    header = "-H 'Authorization: Bearer TOKEN' " if token else ""
    console.print()
    say(console, Text(f"Next: curl {through}{header}{address.url}{path} --json '{body}'", "dim"))


def _example(hosted: Hosted) -> dict[str, object]:
    if hosted.manifest.embedding is not None:
        return {"input": "Hello"}
    return {"messages": [{"role": "user", "content": "Hello"}]}


def _counted(models: Sequence[Hosted]) -> str:
    return f"{len(models)} models" if len(models) > 1 else models[0].name
