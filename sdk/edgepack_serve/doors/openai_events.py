"""A response as server-sent events: what begins, each piece, what ends, numbered one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgepack import Chunk, EdgepackError, Result
from edgepack_serve.asked import Head
from edgepack_serve.doors import openai_forms, openai_items
from edgepack_serve.refusals import code_of

_Fields = dict[str, Any]


class ResponseWriter:
    """Writes one response; ``response`` makes it of its result, None for the one that has just begun."""

    content_type = "text/event-stream"

    def __init__(self, response: Callable[[Result | None], _Fields], head: Head) -> None:
        self._response, self._head = response, head
        self._number = 0  # of the next event
        self._output = -1  # the index of the item that is open
        self._kind: str | None = None
        self._texts: list[str] = []
        self._logprobs: list[_Fields] = []

    def begin(self) -> Iterable[bytes]:
        """The response, before it has said anything."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, {"response": self._response(None)})

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        """A piece of the thought or of the text."""
        if chunk.reasoning:
            yield from self._opened("reasoning")
            self._texts.append(chunk.reasoning)
            yield self._inside("response.reasoning_text.delta", {"delta": chunk.reasoning})
        if chunk.text or chunk.logprobs:
            yield from self._opened("message")
            logprobs = [openai_forms.logprob(each) for each in chunk.logprobs or ()]
            self._texts.append(chunk.text)
            self._logprobs += logprobs
            yield self._inside("response.output_text.delta", {"delta": chunk.text, "logprobs": logprobs})

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        """The end of what is open, and the calls."""
        status = "incomplete" if result.finish_reason == "length" else "completed"
        if self._kind != "message" and not result.tool_calls:
            yield from self._opened("message", status)
        yield from self._closed(status)
        for call in openai_items.calls(result, self._head):
            self._output += 1
            arguments = call["arguments"]
            where = {"output_index": self._output}
            begun = {**call, "arguments": "", "status": "in_progress"}
            yield self._event("response.output_item.added", {**where, "item": begun})
            inside = {**where, "item_id": call["id"]}
            yield self._event("response.function_call_arguments.delta", {**inside, "delta": arguments})
            done = {**inside, "name": call["name"], "arguments": arguments}
            yield self._event("response.function_call_arguments.done", done)
            yield self._event("response.output_item.done", {**where, "item": call})

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        """The whole response."""
        response = self._response(results[0])
        yield self._event(f"response.{response['status']}", {"response": response})

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        """The response, which failed."""
        told = {"code": code_of(error) or "server_error", "message": str(error)}
        yield self._event("response.failed", {"response": {**self._response(None), "status": "failed", "error": told}})

    def alive(self) -> Iterable[bytes]:
        """A comment."""
        yield openai_forms.ALIVE

    def _opened(self, kind: str, status: str = "completed") -> Iterable[bytes]:
        """Begin an item, and its one part, where another is open or none."""
        if self._kind == kind:
            return
        yield from self._closed(status)
        self._kind, self._output = kind, self._output + 1
        yield self._event(
            "response.output_item.added", {"output_index": self._output, "item": self._item("in_progress")}
        )
        yield self._inside("response.content_part.added", {"part": self._part("", [])})

    def _closed(self, status: str) -> Iterable[bytes]:
        if self._kind is None:
            return
        text, said = "".join(self._texts), self._kind == "message"
        done: _Fields = {"text": text, "logprobs": self._logprobs} if said else {"text": text}
        part = self._part(text, self._logprobs)
        yield self._inside(f"response.{'output_text' if said else 'reasoning_text'}.done", done)
        yield self._inside("response.content_part.done", {"part": part})
        yield self._event("response.output_item.done", {"output_index": self._output, "item": self._item(status, text)})
        self._kind, self._texts, self._logprobs = None, [], []

    def _item(self, status: str, text: str | None = None) -> _Fields:
        if self._kind == "reasoning":
            return openai_items.reasoning(self._head, text, status)
        return openai_items.message(self._head, [] if text is None else [self._part(text, self._logprobs)], status)

    def _part(self, text: str, logprobs: list[_Fields]) -> _Fields:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return openai_items.output_text(text, logprobs)

    def _inside(self, kind: str, data: _Fields) -> bytes:
        """Return an event about the one part of the item that is open."""
        id = f"{'rs' if self._kind == 'reasoning' else 'msg'}_{self._head.id}"
        return self._event(kind, {"item_id": id, "output_index": self._output, "content_index": 0, **data})

    def _event(self, kind: str, data: Mapping[str, object]) -> bytes:
        told = msgspec.json.encode({"type": kind, "sequence_number": self._number, **data})
        self._number += 1
        return f"event: {kind}\ndata: ".encode() + told + b"\n\n"
