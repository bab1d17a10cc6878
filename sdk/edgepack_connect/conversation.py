"""A conversation with a model on a server: what was said is kept here, and sent whole each time.

A server that keeps the beginning of a prompt evaluates only what is new: ``usage.cached_tokens``, where it tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Protocol, Unpack

from edgepack.bundle.thinking import CLIENTS
from edgepack.decoding.options import ChatOptions
from edgepack.decoding.results import Result
from edgepack.errors import UsageError
from edgepack.text.messages import checked
from edgepack.text.prompts import Messages
from edgepack.text.tools import ToolCall
from edgepack_connect.stream import AsyncRemoteStream, RemoteStream, awhole, whole

Said = str | Mapping[str, object] | Messages


class Answering(Protocol):
    """What a conversation asks of the one that answers."""

    def answering(self, messages: Messages, options: ChatOptions, finished: _Finished) -> RemoteStream: ...


class _Finished(Protocol):
    def __call__(self, result: Result) -> None: ...


class RemoteConversation:
    """Made by ``chat()`` of a model on a server: as ``edgepack.Conversation``, but that it is not saved.

    A turn that failed, or was cancelled before its first piece, leaves the conversation as it was.
    """

    def __init__(self, model: Answering, system: str | None = None, options: ChatOptions | None = None) -> None:
        self._model = model
        self._options: ChatOptions = options or {}
        begun: list[dict[str, object]] = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[Sequence[dict[str, object]]] = [begun]
        self._lock = Lock()

    def __repr__(self) -> str:
        turns = "1 turn" if self.turns == 1 else f"{self.turns} turns"
        return f"<RemoteConversation of {turns} with {self._model!r}>"

    @property
    def messages(self) -> list[dict[str, object]]:
        """All that was said, as ``chat`` takes it; what was thought is ``reasoning_content``."""
        return [dict(message) for turn in self._turns for message in turn]

    @property
    def turns(self) -> int:
        """How many times something was said and answered."""
        return len(self._turns) - 1

    def send(self, said: Said, **options: Unpack[ChatOptions]) -> Result:
        """Say something, a user's text or messages such as the results of tools, and return the answer.

        Options of this call go before those of the conversation. Raises as ``chat``.
        """
        return whole(self.stream(said, **options))

    def stream(self, said: Said, **options: Unpack[ChatOptions]) -> RemoteStream:
        """``send``, piece by piece: the turn is remembered when the ``with`` block is left."""
        if isinstance(said, str):
            said = {"role": "user", "content": said}
        new = checked([said] if isinstance(said, Mapping) else said)
        wanted: ChatOptions = {**self._options, **options}
        past = list(self._turns)

        def finished(result: Result) -> None:
            if result.text or result.reasoning or result.tool_calls:
                with self._lock:
                    if self._turns != past:
                        raise UsageError(
                            "The conversation has changed since this turn was asked for.", hint="Ask again."
                        )
                    self._turns.append([*_before(new), _answer(new, result)])

        return self._model.answering([*self.messages, *new], wanted, finished)

    async def asend(self, said: Said, **options: Unpack[ChatOptions]) -> Result:
        """``send`` for an event loop."""
        return await awhole(self.astream(said, **options))

    def astream(self, said: Said, **options: Unpack[ChatOptions]) -> AsyncRemoteStream:
        """``stream`` for an event loop."""
        return AsyncRemoteStream(lambda: self.stream(said, **options))

    def undo(self, turns: int = 1) -> None:
        """Forget the last turns, what was said and its answer. Raises ``UsageError`` for more than there are."""
        with self._lock:
            if not 0 <= turns < len(self._turns):
                are = "is 1 turn" if self.turns == 1 else f"are {self.turns} turns"
                raise UsageError(f"There {are} to undo, not {turns}.")
            del self._turns[len(self._turns) - turns :]

    def fork(self) -> RemoteConversation:
        """Return a conversation with the same past, which goes its own way."""
        other = RemoteConversation(self._model, None, self._options)
        other._turns = list(self._turns)
        return other


def _before(new: Sequence[dict[str, object]]) -> Sequence[dict[str, object]]:
    """Return what was said, without the beginning of an answer that goes on."""
    return new[:-1] if new[-1]["role"] == "assistant" else new


def _answer(new: Sequence[dict[str, object]], result: Result) -> dict[str, object]:
    begun = str(new[-1]["content"]) if new[-1]["role"] == "assistant" else ""
    answer: dict[str, object] = {"role": "assistant", "content": begun + result.text}
    if result.reasoning:
        answer[CLIENTS] = result.reasoning
    if result.tool_calls:
        answer["tool_calls"] = [_call(call, f"call_{index}") for index, call in enumerate(result.tool_calls)]
    return answer


def _call(call: ToolCall, id: str) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or id, "type": "function", "function": function}
