"""A conversation that goes on where its last turn ended: the engine evaluates only what is new.

The ids of a turn are kept as they were, prompt and answer, so that the KV cache stays valid however the answer's text
would be tokenised again. A template that rewrites earlier turns (some drop a model's thoughts) makes the next prompt
share less; ``usage.cached_tokens`` of each result says how much it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Protocol, Unpack
from weakref import ReferenceType, ref

import msgspec

from edgepack.bundle.thinking import CLIENTS
from edgepack.bundle.writing import write_atomically
from edgepack.decoding.cache import Cache, Step
from edgepack.decoding.desk import Desk
from edgepack.decoding.options import ChatOptions
from edgepack.decoding.repro import Setup
from edgepack.decoding.results import Result
from edgepack.decoding.stream import AsyncStream, Stream, awhole, whole
from edgepack.errors import BundleError, UsageError, brief
from edgepack.prefix import common_length
from edgepack.text.chat import ChatTemplate
from edgepack.text.detokenize import Detokenizer
from edgepack.text.messages import checked
from edgepack.text.prompts import Messages, Prompt
from edgepack.text.tokenizer import Tokenizer

_VERSION = 2
Said = str | Mapping[str, object] | Messages


class Answering(Protocol):
    """What a conversation asks of the one that answers: an ``edgepack.Model`` is one."""

    @property
    def setup(self) -> Setup: ...
    @property
    def _desk(self) -> Desk: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...
    def _later(self, making: Callable[[], Stream]) -> AsyncStream: ...
    def _answer(
        self,
        messages: Messages,
        options: ChatOptions,
        *,
        continues: Callable[[str], list[int] | None] | None = None,
        starting: Callable[[Stream], None] = ...,
        finished: Callable[[Prompt, Result], None] = ...,
    ) -> Stream: ...


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a turn added, and the whole conversation after it as the engine saw it: a text and its ids."""

    messages: tuple[dict[str, object], ...]
    text: str = ""
    ids: tuple[int, ...] = ()


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a conversation. ``state`` is the session's own snapshot of ``tokens`` evaluated in ``steps``."""

    version: int
    bundle_id: str
    variant: str
    engine: str | None
    turns: list[tuple[list[dict[str, object]], str, list[int]]]
    tokens: list[int] = []
    steps: list[Step] = []
    state: bytes = b""


class Conversation:
    """Made by ``model.chat()``. One at a time has its tokens in the cache: another's turn, or any other request, takes
    the cache over from where the two begin to differ, and a system prompt that both share is evaluated once.

    ``send`` or ``stream`` what the user says; the answer is remembered, also one that was cancelled half way. A turn
    that failed leaves the conversation as it was. One turn at a time: another, and ``undo``, are refused meanwhile.
    """

    def __init__(self, model: Answering, system: str | None = None, options: ChatOptions | None = None) -> None:
        self._model = model
        self._options: ChatOptions = options or {}
        begun: list[dict[str, object]] = [] if system is None else [{"role": "system", "content": system}]
        self._turns = [_Turn(tuple(begun))]
        self._answering: ReferenceType[Stream] | None = None
        self._lock = RLock()  # a turn begins on the engine's thread

    def __repr__(self) -> str:
        turns = "1 turn" if self.turns == 1 else f"{self.turns} turns"
        return f"<Conversation of {turns} with {brief(self._model.setup.variant)}>"

    @property
    def messages(self) -> list[dict[str, object]]:
        """All that was said, as ``Model.chat`` takes it; what was thought is ``reasoning_content``."""
        return [dict(message) for turn in self._turns for message in turn.messages]

    @property
    def turns(self) -> int:
        """How many times something was said and answered."""
        return len(self._turns) - 1

    def send(self, said: Said, **options: Unpack[ChatOptions]) -> Result:
        """Say something, a user's text or messages such as the results of tools, and return the answer.

        Options of this call go before those of the conversation. Raises as ``Model.chat``, and ``UsageError`` where a
        turn of this conversation is still being answered.
        """
        return whole(self.stream(said, **options))

    def stream(self, said: Said, **options: Unpack[ChatOptions]) -> Stream:
        """``send``, piece by piece: the turn is remembered when the ``with`` block is left."""
        if isinstance(said, str):
            said = {"role": "user", "content": said}
        new = checked([said] if isinstance(said, Mapping) else said)
        wanted: ChatOptions = {**self._options, **options}
        last = self._turns[-1]

        def starting(stream: Stream) -> None:
            with self._lock:
                self._check_still()
                if self._turns[-1] is not last:
                    raise UsageError("The conversation has changed since this turn was asked for.", hint="Ask again.")
                self._answering = ref(stream)

        def finished(prompt: Prompt, result: Result) -> None:
            if result.token_ids or result.tool_calls:
                self._turns.append(self._turn(new, prompt, result))

        self._check_still()
        return self._model._answer(
            [*self.messages, *new], wanted, continues=self._continue, starting=starting, finished=finished
        )

    async def asend(self, said: Said, **options: Unpack[ChatOptions]) -> Result:
        """``send`` for an event loop."""
        return await awhole(self.astream(said, **options))

    def astream(self, said: Said, **options: Unpack[ChatOptions]) -> AsyncStream:
        """``stream`` for an event loop."""
        return self._model._later(lambda: self.stream(said, **options))

    def undo(self, turns: int = 1) -> None:
        """Forget the last turns, what was said and its answer. Raises ``UsageError`` for more than there are."""
        with self._lock:
            self._check_still()
            if not 0 <= turns < len(self._turns):
                there = len(self._turns) - 1
                are = "is 1 turn" if there == 1 else f"are {there} turns"
                raise UsageError(f"There {are} to undo, not {turns}.")
            del self._turns[len(self._turns) - turns :]

    def fork(self) -> Conversation:
        """Return a conversation with the same past, which goes its own way."""
        other = Conversation(self._model, None, self._options)
        other._turns = list(self._turns)
        return other

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, with the state of the engine as far as it is this conversation's and can
        be saved. A turn that is still being answered is not part of it.

        The file is written whole or not at all. It is as large as the KV cache of the conversation.
        """
        desk, setup, past = self._model._desk, self._model.setup, list(self._turns)
        tokens, steps, state = desk.call(lambda: self._state(past))
        turns = [([dict(message) for message in each.messages], each.text, list(each.ids)) for each in past]
        saved = _Saved(
            version=_VERSION,
            bundle_id=setup.bundle_id,
            variant=setup.variant,
            engine=setup.engine,
            turns=turns,
            tokens=tokens,
            steps=steps,
            state=state,
        )
        write_atomically(Path(path), msgspec.msgpack.encode(saved))

    @classmethod
    def _resume(cls, model: Answering, path: Path) -> Conversation:
        """Return a conversation that was saved; see ``Model.resume``."""
        try:
            saved = msgspec.msgpack.decode(path.read_bytes(), type=_Saved)
        except msgspec.DecodeError as error:
            raise BundleError(
                f"{path} is not a conversation: {error}.", hint="Save one with chat.save(path)."
            ) from None
        if saved.version != _VERSION or saved.bundle_id != model.setup.bundle_id:
            raise BundleError(
                f"{path} is a conversation with another bundle.", hint="Load the bundle it was held with."
            )
        conversation = cls(model)
        conversation._turns = [_Turn(tuple(messages), text, tuple(ids)) for messages, text, ids in saved.turns]
        if saved.state and (saved.variant, saved.engine) == (model.setup.variant, model.setup.engine):
            desk = model._desk
            desk.call(lambda: desk.seat.restore(saved.state, saved.tokens, saved.steps))
        return conversation

    def _turn(self, said: Sequence[dict[str, object]], prompt: Prompt, result: Result) -> _Turn:
        text, thought, words = result.text, result.reasoning, Detokenizer(self._model.tokenizer)
        spoken = "".join(map(words.push, result.token_ids))
        goes_on = said[-1]["role"] == "assistant"
        before, begun = (said[:-1], str(said[-1]["content"])) if goes_on else (said, "")
        writes_calls = "tool_calls" in self._model.template.for_tools.source
        if (result.tool_calls and not writes_calls) or (goes_on and thought is not None):
            # A template that cannot write calls is told their words; a thought that goes on is one with its beginning.
            text, thought = spoken, None
        answer: dict[str, object] = {"role": "assistant", "content": begun + text}
        if thought:
            answer[CLIENTS] = thought
        if result.tool_calls and writes_calls:
            return _Turn((*before, {**answer, "tool_calls": _calls(result)}))
        if isinstance(result.stop, str) or words.unfinished:  # the tokens spell what is not part of the text
            return _Turn((*before, answer))
        assert result.repro is not None  # a model's own result has it
        whole = text if thought is None else spoken
        return _Turn((*before, answer), prompt.text + whole, (*result.repro.prompt_ids, *result.token_ids))

    def _check_still(self) -> None:
        stream = None if self._answering is None else self._answering()
        if stream is not None and not stream._over:
            raise UsageError(
                "A turn of this conversation is still being answered.",
                hint="Wait for its end, or fork the conversation to branch off.",
            )

    def _state(self, past: list[_Turn]) -> tuple[list[int], list[Step], bytes]:
        """Return the tokens and steps that the cache shares with the past, and the session's snapshot of them."""
        seat = self._model._desk.seat
        ids = next((turn.ids for turn in reversed(past) if turn.ids), ())
        shared = Cache()
        shared.tokens, shared.steps = list(seat.cache.tokens), list(seat.cache.steps)
        shared.cut(common_length(shared.tokens, ids))
        state = seat.snapshot(len(shared.tokens)) if shared.tokens else b""
        return (shared.tokens, shared.steps, state) if state else ([], [], b"")

    def _continue(self, text: str) -> list[int] | None:
        """Return the ids of a prompt that goes on from the last turn, None for one that does not.

        What is new must begin with a special token: only there does tokenising begin anew in every tokenizer.
        """
        last, tokenizer = self._turns[-1], self._model.tokenizer
        if not last.text or not text.startswith(last.text):
            return None
        new = tokenizer.encode(text[len(last.text) :], bos=False, special=True)
        return [*last.ids, *new] if new and new[0] in tokenizer.special_ids else None


def _calls(result: Result) -> list[dict[str, object]]:
    """Return tool calls as chat templates take them."""
    calls: list[dict[str, object]] = []
    for call in result.tool_calls:
        calls.append({"type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        if call.id is not None:
            calls[-1]["id"] = call.id
    return calls
