"""GET /api/tags, /api/ps and /api/version, POST /api/show and /api/embed: what is served, as Ollama's clients ask."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from math import inf
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgepack import EdgepackError, Model
from edgepack.errors import UsageError
from edgepack_serve.answering import embedded
from edgepack_serve.asked import Body
from edgepack_serve.doors import fields, ollama_forms
from edgepack_serve.exchange import Reply, Terms, exchanged
from edgepack_serve.hosting.host import Host
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.underway import Underway

_Fields = dict[str, Any]
_FOREVER = timedelta(days=100 * 365)


class ShowRequest(msgspec.Struct):
    """The model that is asked about."""

    model: str


class OllamaEmbedRequest(msgspec.Struct, kw_only=True):
    """The texts that are to become vectors. ``prompt`` is edgepack's own: the name of one of the bundle's prompts."""

    model: str
    input: str | list[str]
    truncate: bool = True
    options: _Fields | None = None
    keep_alive: float | str | None = None
    prompt: str | None = None


class OllamaModels:
    """Answers what models there are. ``started`` is when the server began, in seconds since 1970."""

    def __init__(self, host: Host, started: int) -> None:
        self._host = host
        self._started = datetime.fromtimestamp(started, UTC).isoformat()

    async def tags(self, request: Request) -> Response:
        """List all."""
        return JSONResponse({"models": [self._one(each) for each in self._host.models.values()]})

    async def running(self, request: Request) -> Response:
        """List those that are loaded, and when they are to go."""
        loaded = [each for each in self._host.models.values() if each.model is not None]
        return JSONResponse({"models": [{**self._one(each), **self._loaded(each)} for each in loaded]})

    async def version(self, request: Request) -> Response:
        """Tell edgepack's version."""
        return JSONResponse({"version": version("edgepack")})

    def show(self, name: str) -> _Fields:
        """Describe one. Raises ``RefusedError`` where there is none of this name."""
        hosted = self._host.find(name)
        manifest, decoder = hosted.manifest, hosted.manifest.decoder
        family = decoder.family
        return {
            "modified_at": self._started,
            "license": manifest.license.id,
            "parameters": f"num_ctx {hosted.choice.options.context}",
            "details": _details(hosted),
            "model_info": {
                "general.architecture": family,
                f"{family}.block_count": decoder.n_layers,
                f"{family}.context_length": manifest.context.profile,
                f"{family}.embedding_length": decoder.hidden_size,
            },
            "capabilities": _capabilities(hosted),
        }

    def _one(self, hosted: Hosted) -> _Fields:
        name = f"{hosted.name}{ollama_forms.LATEST}"
        size = hosted.choice.memory.total
        facts = {"name": name, "model": name, "modified_at": self._started, "size": size, "digest": hosted.bundle_id}
        return {**facts, "details": _details(hosted)}

    def _loaded(self, hosted: Hosted) -> _Fields:
        seconds = self._host.left_s(hosted)
        left = _FOREVER if seconds == inf else timedelta(seconds=max(0.0, seconds))
        on_gpu = hosted.model is not None and hosted.model.device != "cpu"
        return {
            "expires_at": (datetime.now(UTC) + left).isoformat(),
            "size_vram": hosted.choice.memory.total if on_gpu else 0,
            "context_length": hosted.choice.options.context,
        }


class OllamaShow:
    """POST /api/show as an ASGI application: it needs no model to be loaded."""

    request = ShowRequest

    def __init__(self, models: OllamaModels, underway: Underway, terms: Terms) -> None:
        self._models, self._underway, self._terms = models, underway, terms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        reply = Reply(send, self._terms)

        async def work(body: Body) -> None:
            asked = fields.read(
                ollama_forms.known(body, ShowRequest, ()), ShowRequest, "A question", passed=frozenset()
            )
            await reply.json(self._models.show(ollama_forms.plain(asked.model)))

        await exchanged(scope, receive, reply, self._terms, self._underway, work, self.fault)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Ollama's form."""
        return ollama_forms.fault(error)


class OllamaEmbed:
    """The question of /api/embed."""

    request = OllamaEmbedRequest

    def read(self, body: Body) -> tuple[str, OllamaEmbedRequest]:
        """Return what a request asks for. Raises ``UsageError``."""
        neutral: fields.Neutral = {"dimensions": (None, 0)}
        known = ollama_forms.known(body, OllamaEmbedRequest, neutral)
        asked = fields.read(known, OllamaEmbedRequest, "An embedding", neutral=neutral, passed=frozenset())
        if not asked.input:
            raise UsageError("input is empty.", hint="Send a text, or a list of texts.")
        return ollama_forms.plain(asked.model), asked

    async def answer(self, model: Model, asked: OllamaEmbedRequest) -> Mapping[str, object]:
        """Return the vectors, in the order of the texts."""
        vectors, tokens = await embedded(model, asked.input, asked.prompt)
        return {"model": asked.model, "embeddings": [row.tolist() for row in vectors], "prompt_eval_count": tokens}

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Ollama's form."""
        return ollama_forms.fault(error)


def _details(hosted: Hosted) -> _Fields:
    family = hosted.manifest.decoder.family
    return {
        "parent_model": "",
        "format": hosted.choice.runtime,
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": hosted.choice.variant,
    }


def _capabilities(hosted: Hosted) -> list[str]:
    manifest = hosted.manifest
    if manifest.embedding is not None:
        return ["embedding"]
    thinks = manifest.chat is not None and manifest.chat.thinking is not None
    return ["completion", *(["tools"] if hosted.tools else []), *(["thinking"] if thinks else [])]
