"""One door to a model: a bundle on this machine, or a model on a server, by one string.

The client is found through the entry point group ``edgepack.connect``, by the name ``http``: this package opens no
socket and imports no client.
"""

from __future__ import annotations

import asyncio
import os
import re
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, Unpack

from edgepack.errors import ExtraMissingError, UsageError
from edgepack.extras import needed, spelled

if TYPE_CHECKING:
    from edgepack.language_model import LanguageModel
    from edgepack.loading import LoadOptions, Where

API_KEY = "EDGEPACK_API_KEY"
TIMEOUT_S = 300.0
_GROUP, _EXTRA = "edgepack.connect", "connect"
_URL = re.compile(r"https?://", re.IGNORECASE)


class _Connecting(Protocol):
    def __call__(
        self, url: str, model: str | None, api_key: str | None, *, timeout_s: float, plain_http: bool
    ) -> LanguageModel: ...


def is_url(where: object) -> bool:
    """Say whether a string is the address of a server."""
    return isinstance(where, str) and _URL.match(where) is not None


def connect(
    url: str,
    model: str | None = None,
    api_key: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    plain_http: bool = False,
) -> LanguageModel:
    """Return a model on a server, with the calls of ``edgepack.Model``: edgepack's own server, vLLM, SGLang, TGI,
    llama-server, Ollama, LM Studio, or another that speaks OpenAI's interface.

    ``url`` is the server's, with or without /v1, as "http://127.0.0.1:8000". The ``model`` may be named there too,
    behind "#"; without one it is the only one that the server has. ``api_key`` is what the server asks for; without it,
    what the variable ``EDGEPACK_API_KEY`` has. It is sent over plain http to this machine alone, unless ``plain_http``.
    ``timeout_s``: how long the server may take for the next piece of an answer; twelve times that for the whole.

    The server is asked what it is; what it cannot honour is refused by name when it is asked for. Raises
    ``ExtraMissingError`` where the packages are not installed, ``UsageError`` for an address, a key or a model that is
    none, ``EngineError`` where the server cannot be reached or answers as none does.
    """
    if not is_url(url):
        raise UsageError("url is no address of a server.", hint="Pass one that begins with http:// or https://.")
    found = next(iter(entry_points(group=_GROUP, name="http")), None)
    if found is None:
        raise ExtraMissingError(
            "This edgepack has no client of servers.", hint=f"pip install --force-reinstall '{spelled(_EXTRA)}'"
        )
    with needed("A model on a server", _EXTRA):
        connecting: _Connecting = found.load()
    key = os.environ.get(API_KEY) if api_key is None else api_key
    return connecting(url, model, key or None, timeout_s=timeout_s, plain_http=plain_http)


async def aconnect(
    url: str,
    model: str | None = None,
    api_key: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    plain_http: bool = False,
) -> LanguageModel:
    """``connect`` for an event loop."""
    return await asyncio.to_thread(connect, url, model, api_key, timeout_s=timeout_s, plain_http=plain_http)


def open(
    where: Where,
    model: str | None = None,
    api_key: str | None = None,
    *,
    backend: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    **options: Unpack[LoadOptions],
) -> LanguageModel:
    """Return what answers: a bundle (its path, the name of one that is installed, or a ``Bundle``) as ``load`` opens
    it, or a model on a server as ``connect`` does.

    ``backend``, ``context``, ``kv_cache`` and ``options`` are those of ``load``, for a bundle alone; a ``model`` is one
    of a server's. An ``api_key`` is only
    ever sent to a server, so that an application may pass it beside either. Raises as ``load`` or ``connect``, and
    ``UsageError`` for an option of the other.
    """
    if isinstance(where, str) and is_url(where):
        loads = {"backend": backend, "context": context, "kv_cache": kv_cache, **options}
        if given := next((name for name, value in loads.items() if value is not None), None):
            raise UsageError(
                f"{given} was given, and what answers is a server.", hint="Leave it out: the server loads its models."
            )
        return connect(where, model, api_key)
    if model is not None:
        raise UsageError("model was given, and what answers is a bundle.", hint="Leave it out, or pass a URL.")
    from edgepack.loading import load

    return load(where, backend, context, kv_cache, **options)


async def aopen(
    where: Where,
    model: str | None = None,
    api_key: str | None = None,
    *,
    backend: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    **options: Unpack[LoadOptions],
) -> LanguageModel:
    """``open`` for an event loop."""

    def opening() -> LanguageModel:
        return open(where, model, api_key, backend=backend, context=context, kv_cache=kv_cache, **options)

    return await asyncio.to_thread(opening)
