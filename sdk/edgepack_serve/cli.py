"""``edgepack serve``: bundles behind HTTP."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import Backend, Context, KvCache, PolicyFile, Threads, Variant
from edgepack.cli.run_options import Isolate
from edgepack.errors import UsageError
from edgepack.extras import needed

if TYPE_CHECKING:
    import socket

    from edgepack_serve.guard.names import Names
    from edgepack_serve.running import Certificate

_ADDRESS, _WHO, _MODELS, _REQUESTS = "Address", "Who may ask", "Models", "Requests"

Bundles = Annotated[
    list[str],
    typer.Argument(
        metavar="BUNDLE",
        help="Bundles, by folder or by the name of an installed one; NAME=BUNDLE gives it another name.",
        show_default=False,
    ),
]
HostAddress = Annotated[
    str, typer.Option("--host", help="The address to listen on.", metavar="ADDRESS", rich_help_panel=_ADDRESS)
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="The port; 0: a free one.", metavar="PORT", rich_help_panel=_ADDRESS)
]
Unix = Annotated[
    Path | None,
    typer.Option(
        help="Listen on a Unix socket at this path instead.",
        metavar="PATH",
        show_default=False,
        rich_help_panel=_ADDRESS,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        help="Speak HTTPS, by this certificate with its chain (PEM).",
        metavar="FILE",
        show_default=False,
        rich_help_panel=_ADDRESS,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(help="The certificate's key (PEM).", metavar="FILE", show_default=False, rich_help_panel=_ADDRESS),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="Ask for the token in this file. Default: EDGEPACK_TOKEN, if set. Needed for any --host but this machine.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=_WHO,
    ),
]
HostNames = Annotated[
    list[str] | None,
    typer.Option(
        "--host-name",
        help="Answer to this name too, as an address bar has it. Repeatable.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_WHO,
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--origin",
        help="Let pages of this origin ask, as https://app.example. Repeatable.",
        metavar="ORIGIN",
        show_default=False,
        rich_help_panel=_WHO,
    ),
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        help="Load this model at the start and keep it. Repeatable.",
        metavar="NAME",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
Idle = Annotated[
    float,
    typer.Option(
        min=0, help="Unload a model so long after its last request; 0: never.", metavar="SECONDS",
        rich_help_panel=_MODELS,
    ),
]  # fmt: skip
Parallel = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Requests of a model at the same time. Default: 4, or 2 or 1 where the memory holds no more.",
        metavar="N",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        min=0, help="Requests of a model that may wait; others get 429.", metavar="N", rich_help_panel=_REQUESTS
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="The longest for a request.", metavar="SECONDS", rich_help_panel=_REQUESTS)
]
Grace = Annotated[
    float,
    typer.Option(
        min=0,
        help="How long requests may go on once it is told to stop.",
        metavar="SECONDS",
        rich_help_panel=_REQUESTS,
    ),
]
MaxBody = Annotated[
    int, typer.Option(min=1, help="The largest body of a request, in KiB.", metavar="KIB", rich_help_panel=_REQUESTS)
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Write the log as lines of JSON.")]


@examples(
    "edgepack serve demo.edgepack",
    "edgepack serve qwen3 small=smollm2.edgepack --pin qwen3 --idle 300",
    "edgepack serve demo.edgepack --host 0.0.0.0 --token-file token",
    "edgepack serve demo.edgepack --unix /run/edgepack/serve.sock",
    heading="Use a bundle",
)
def serve(
    bundles: Bundles,
    host: HostAddress = "127.0.0.1",
    port: Port = 8080,
    unix: Unix = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    host_name: HostNames = None,
    origin: Origins = None,
    pin: Pins = None,
    idle: Idle = 900,
    parallel: Parallel = None,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    isolate: Isolate = False,
    policy: PolicyFile = None,
    queue: Queue = 32,
    timeout: Timeout = 600,
    grace: Grace = 10,
    max_body: MaxBody = 4096,
    log_json: LogJson = False,
) -> None:
    """Serve bundles over HTTP, to clients of OpenAI's, Anthropic's and Ollama's interfaces, and a page to browsers."""
    with needed("edgepack serve", "serve"):
        import uvicorn  # noqa: F401
    import asyncio

    from edgepack_serve import logs, screen
    from edgepack_serve.app import Guards, make_app
    from edgepack_serve.exchange import Terms
    from edgepack_serve.figures import Figures
    from edgepack_serve.guard import tokens
    from edgepack_serve.guard.bodies import Limits
    from edgepack_serve.hosting.host import Host
    from edgepack_serve.hosting.opening import hosted
    from edgepack_serve.hosting.settings import Settings
    from edgepack_serve.running import Server
    from edgepack_serve.underway import Underway

    token, certificate = tokens.read(token_file), _certificate(tls_cert, tls_key)
    settings = Settings(
        backend=backend,
        variant=variant,
        context=context,
        kv_cache=kv_cache,
        threads=threads,
        policy=policy,
        isolate=isolate,
        parallel=parallel,
        queue=queue,
        idle_s=idle or None,
    )
    listening = _listening(unix, host, port)
    try:
        names = _names(listening, host, host_name or [], origin or [], token is not None)
        models, figures, underway = hosted(bundles, settings, pin or []), Figures(), Underway(timeout)
        serving = Host(models, settings, figures)
        guards, terms = Guards(names=names, token=token), Terms(limits=Limits(bytes=max_body << 10))
        app = make_app(serving, underway, figures, guards, terms)
        logs.start(log_json)
        left = partial(_leave, unix)
        server = Server(app, serving, underway, certificate=certificate, grace_s=grace, left=left)
        where = screen.Address.of(listening[0], unix, certificate is not None)
        asyncio.run(server.run(listening, lambda: screen.show(models, settings, where, token is not None)))
    finally:
        for each in listening:
            each.close()
        if unix is not None:
            unix.unlink(missing_ok=True)


def _leave(unix: Path | None) -> None:
    """End without the thread of an engine that does not stop."""
    if unix is not None:
        unix.unlink(missing_ok=True)
    logging.shutdown()
    os._exit(1)


def _certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UsageError("--tls-cert and --tls-key are given together.", hint="Give both, or none.")
    from edgepack_serve.running import Certificate

    made = Certificate(chain, key)
    made.check()
    return made


def _names(listening: list[socket.socket], host: str, added: list[str], origins: list[str], token: bool) -> Names:
    """Return the names of a server on these sockets. Raises ``UsageError`` where others reach them without a token."""
    from edgepack_serve import sockets
    from edgepack_serve.guard.names import Names, is_loopback

    addresses = [address for each in listening if (address := sockets.address_of(each)) is not None]
    if not token and (others := [each for each in addresses if not is_loopback(each)]):
        raise UsageError(
            f"{others[0]} lets others than this machine ask, and there is no token.",
            hint="Make one (head -c 24 /dev/urandom | base64 > token) and give --token-file token.",
        )
    for each in origins:
        scheme, _, rest = each.partition("://")
        if scheme not in ("http", "https") or not rest or "/" in rest:
            raise UsageError(f"--origin {each} is no origin.", hint="It is as https://app.example, without a path.")
    return Names.of(*addresses, added=[*added, *([host] if addresses else [])], origins=origins)


def _listening(unix: Path | None, host: str, port: int) -> list[socket.socket]:
    from edgepack_serve import sockets, systemd

    if given := systemd.sockets():
        return given
    return [sockets.bound(host, port) if unix is None else sockets.unix(unix)]
