"""POST /api/chat and /api/generate: Ollama's interface. Unknown fields are passed over, as it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edgepack import Chunk, EdgepackError, Result
from edgepack.bundle.thinking import CLIENTS
from edgepack.errors import UsageError
from edgepack_serve.asked import Asked, Body, Head, Writer
from edgepack_serve.doors import fields, ollama_forms

_GENERATE_NEUTRAL: fields.Neutral = {
    "context": (None, []),
    "height": (None, 0),
    "images": (None, []),
    "steps": (None, 0),
    "suffix": (None, ""),
    "template": (None, ""),
    "width": (None, 0),
}
LINES = "application/x-ndjson"
_Fields = dict[str, Any]


class Message(msgspec.Struct):
    """Something that was said."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Fields] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatRequest(ollama_forms.Generating, kw_only=True):
    """The fields of a conversation that are honoured. Without messages, the model is loaded and no more."""

    messages: list[Message] = msgspec.field(default_factory=list)
    tools: list[_Fields] | None = None


class OllamaGenerateRequest(ollama_forms.Generating, kw_only=True):
    """The fields of a text that are honoured. With ``raw`` the prompt is continued as it is, without the template."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False


class OllamaChat:
    """The dialect of /api/chat."""

    request, streams = OllamaChatRequest, LINES

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(
            ollama_forms.known(body, OllamaChatRequest, ()), OllamaChatRequest, "A chat", passed=frozenset()
        )
        options = ollama_forms.options_of(asked)
        if asked.tools:
            options["tools"] = asked.tools
        messages = [_message(each, f"messages[{index}]") for index, each in enumerate(asked.messages)]
        return _asked(asked, messages=messages, options=options, n=min(1, len(messages)))

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return an answer in one piece."""
        return _whole(asked, results, head, _chat_piece)

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes the lines of an answer."""
        return _Lines(asked, head, _chat_piece)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Ollama's form."""
        return ollama_forms.fault(error)


class OllamaGenerate:
    """The dialect of /api/generate."""

    request, neutral, streams = OllamaGenerateRequest, _GENERATE_NEUTRAL, LINES

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        given = ollama_forms.known(body, OllamaGenerateRequest, _GENERATE_NEUTRAL)
        asked = fields.read(given, OllamaGenerateRequest, "A text", neutral=_GENERATE_NEUTRAL, passed=frozenset())
        options = ollama_forms.options_of(asked)
        if asked.raw:
            for name, value in (("system", asked.system), ("think", asked.think)):
                if value:
                    raise UsageError(f"{name} was given beside raw.", hint="Leave one of them out.")
            options.pop("thinking", None)
            return _asked(asked, prompt=asked.prompt, options=options, n=min(1, len(asked.prompt)))
        messages = [{"role": "user", "content": asked.prompt}]
        if asked.system:
            messages.insert(0, {"role": "system", "content": asked.system})
        return _asked(asked, messages=messages, options=options, n=min(1, len(asked.prompt)))

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return an answer in one piece."""
        return _whole(asked, results, head, _text_piece)

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes the lines of an answer."""
        return _Lines(asked, head, _text_piece)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Ollama's form."""
        return ollama_forms.fault(error)


class _Lines:
    """A stream of JSON lines; ``piece_of`` says where a piece has its text, its thought and its calls."""

    content_type = LINES

    def __init__(self, asked: Asked, head: Head, piece_of: Callable[[str, str, list[_Fields]], _Fields]) -> None:
        self._made = ollama_forms.made(str(asked.kept["model"]), head)
        self._head, self._piece_of, self._keep_s = head, piece_of, asked.keep_s

    def begin(self) -> Iterable[bytes]:
        return ()

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        if chunk.text or chunk.reasoning or chunk.logprobs:
            piece = self._piece_of(chunk.text, chunk.reasoning, [])
            yield ollama_forms.line({**self._made, **piece, "done": False, **ollama_forms.logprobs(chunk.logprobs)})

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        if calls := _calls(result, self._head):
            yield ollama_forms.line({**self._made, **self._piece_of("", "", calls), "done": False})

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        ended = ollama_forms.ended(results[0]) if results else ollama_forms.loaded(self._keep_s)
        yield ollama_forms.line({**self._made, **self._piece_of("", "", []), **ended})

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        yield ollama_forms.line(ollama_forms.fault(error))

    def alive(self) -> Iterable[bytes]:
        return ()


def _asked(asked: ollama_forms.Generating, **more: Any) -> Asked:
    return Asked(
        model=ollama_forms.plain(asked.model),
        stream=asked.stream,
        context=ollama_forms.context_of(asked),
        keep_s=ollama_forms.keep_of(asked),
        kept={"model": asked.model},
        **more,
    )


def _whole(
    asked: Asked, results: Sequence[Result], head: Head, piece_of: Callable[[str, str, list[_Fields]], _Fields]
) -> _Fields:
    made = ollama_forms.made(str(asked.kept["model"]), head)
    if not results:
        return {**made, **piece_of("", "", []), **ollama_forms.loaded(asked.keep_s)}
    (result,) = results
    piece = piece_of(result.text, result.reasoning or "", _calls(result, head))
    return {**made, **piece, **ollama_forms.ended(result), **ollama_forms.logprobs(result.logprobs)}


def _chat_piece(text: str, thought: str, calls: list[_Fields]) -> _Fields:
    message: _Fields = {"role": "assistant", "content": text}
    if thought:
        message["thinking"] = thought
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _text_piece(text: str, thought: str, calls: list[_Fields]) -> _Fields:
    return {"response": text, "thinking": thought} if thought else {"response": text}


def _calls(result: Result, head: Head) -> list[_Fields]:
    return [
        {
            "id": call.id or f"call_{head.id[:16]}{index}",
            "function": {"index": index, "name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(result.tool_calls)
    ]


def _message(said: Message, place: str) -> _Fields:
    if said.images:
        raise UsageError(f"{place}.images cannot be honoured here.", hint="The model reads text alone.")
    made: _Fields = {"role": said.role, "content": said.content or ""}
    if said.thinking:
        made[CLIENTS] = said.thinking
    if said.tool_calls:
        made["tool_calls"] = [
            {name: value for name, value in call.items() if name in ("id", "type", "function")}
            for call in said.tool_calls
        ]
    if said.tool_name:
        made["name"] = said.tool_name
    if said.tool_call_id:
        made["tool_call_id"] = said.tool_call_id
    return made
