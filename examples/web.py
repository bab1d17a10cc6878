"""A web app: FastAPI streams answers as server-sent events, and the engine stops for a client that goes away.

pip install 'edgepack[gguf,examples]'
python examples/web.py demo.edgepack --port 8000
curl -N localhost:8000/chat --json '{"messages": [{"role": "user", "content": "What is a token?"}]}'

Each piece of text is an event, {"text": "..."}; then comes the event "end", or "error" where the engine fails half way.
What cannot be honoured is refused before the stream begins: 400 with {"error": {"type", "message", "hint"}}. Clients
are answered in turn; beyond --limit of them, a client gets 503 at once.
"""

import argparse
import logging
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

import edgepack

log = logging.getLogger("uvicorn.error")


class Question(BaseModel, extra="forbid"):
    messages: list[dict[str, Any]]
    max_tokens: int = 256
    json_schema: dict[str, Any] | None = None


def make_app(model: edgepack.Model) -> FastAPI:
    """Return an app that answers with a model; whoever opened it closes it."""
    app = FastAPI(title=model.manifest.name)

    async def asked(question: Question) -> AsyncIterator[edgepack.AsyncStream]:
        """Wait for the model's turn. What is refused is refused here, and the end of the response frees the model."""
        async with model.astream_chat(**question.model_dump()) as stream:
            yield stream

    @app.post("/chat", response_class=EventSourceResponse)
    async def chat(stream: Annotated[edgepack.AsyncStream, Depends(asked)]) -> AsyncIterator[ServerSentEvent]:
        tokens, reason = 0, "the client went"
        try:
            async for chunk in stream:
                tokens += len(chunk.token_ids)
                yield ServerSentEvent(data={"text": chunk.text})
            reason = stream.result.finish_reason
            yield ServerSentEvent(event="end", data={"finish_reason": reason} | stream.result.usage.to_dict())
        except edgepack.EdgepackError as error:
            reason = str(error)
            yield ServerSentEvent(event="error", data=described(error))
        finally:
            log.info("%d tokens, then: %s", tokens, reason)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"model": model.manifest.name, "backend": model.backend, "context": model.context}

    @app.exception_handler(edgepack.EdgepackError)
    async def refuse(request: Request, error: edgepack.EdgepackError) -> JSONResponse:
        return JSONResponse({"error": described(error)}, 503 if isinstance(error, edgepack.EngineError) else 400)

    return app


def described(error: edgepack.EdgepackError) -> dict[str, str | None]:
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a bundle to browsers.")
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--limit", type=int, default=16, help="clients at a time")
    given = parser.parse_args()
    try:
        with edgepack.load(given.bundle) as model:
            uvicorn.run(make_app(model), port=given.port, limit_concurrency=given.limit, timeout_graceful_shutdown=2)
    except edgepack.EdgepackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
