"""What one event of an answer says, whatever its dialect; and the answer that all of them come to. No HTTP here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from edgepack.decoding.logprobs import TokenLogprob
from edgepack.decoding.results import Chunk, FinishReason, Result, Timings, Usage
from edgepack.errors import EngineError, brief
from edgepack.text.tools import ToolCall, Tools

_ENDS: dict[str, FinishReason] = {
    "stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "tool_calls": "stop", "function_call": "stop",
    "length": "length",
}  # fmt: skip
_MOST_CALLS = 128


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a tool call: those of one call have one ``index``, and one that is whole has None."""

    index: int | None
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one event says. ``end`` is why the answer ended, in the server's words."""

    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    calls: Sequence[CallPiece] = ()
    end: str | None = None
    stop: str | int | None = None
    usage: Usage | None = None
    prefill_tps: float | None = None
    decode_tps: float | None = None


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Answer:
    """What a server has said so far. Times are by this machine's clock, with the network in them; of speeds the
    server's own figures go first, since what it said meanwhile may arrive at once."""

    def __init__(self, tools: Tools | None, server: str) -> None:
        self._tools, self._server = tools, server
        self._began = perf_counter()
        self._first: float | None = None
        self._last = self._began
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._calls: dict[int, _Call] = {}
        self._prefill_tps: float | None = None
        self._decode_tps: float | None = None
        self._usage: Usage | None = None
        self._end: str | None = None
        self._stop: str | int | None = None

    @property
    def ended(self) -> bool:
        """Whether the server said why the answer ended."""
        return self._end is not None

    def take(self, told: Told) -> Chunk | None:
        """Add what an event says, and return what of it is new for a reader. Raises ``EngineError``."""
        self._usage = told.usage or self._usage
        self._prefill_tps = told.prefill_tps or self._prefill_tps
        self._decode_tps = told.decode_tps or self._decode_tps
        self._stop = self._stop if told.stop is None else told.stop
        for piece in told.calls:
            self._add(piece)
        new = bool(told.text or told.reasoning or told.token_ids or told.logprobs)
        if new or told.calls or (told.end is not None and self._end is None):
            self._last = perf_counter()
            if self._first is None and (new or told.calls):
                self._first = self._last
        self._end = self._end or told.end
        if not new:
            return None
        self._text.append(told.text)
        self._reasoning.append(told.reasoning)
        self._ids += told.token_ids
        if told.logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += told.logprobs
        return Chunk(told.text, told.token_ids, told.logprobs, told.reasoning)

    def result(self, cancelled: bool) -> Result:
        """Return the result. Raises ``EngineError`` for an end that is none of ours, ``ToolCallError``."""
        end: FinishReason = "cancelled"
        if not cancelled:
            known = _ENDS.get(self._end or "")
            if known is None:
                raise EngineError(
                    f"{self._server} ended the answer for a reason of its own: {brief(self._end or 'none')!r}.",
                    hint="Ask who runs it.",
                )
            end = known
        usage = self._usage or Usage(0, 0, counted=False)
        text = "".join(self._text)
        return Result(
            text=text,
            token_ids=tuple(self._ids),
            finish_reason=end,
            stop=self._stop,
            sampling=None,
            usage=usage,
            timings=self._timings(usage),
            repro=None,
            tool_calls=() if cancelled else tuple(self._called(each, text) for each in self._calls.values()),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            reasoning="".join(self._reasoning) or None,
        )

    def _timings(self, usage: Usage) -> Timings:
        ttft = None if self._first is None else self._first - self._began
        spent = 0.0 if self._first is None else self._last - self._first
        counted = usage.counted and usage.completion_tokens > 1 and spent > 0
        decode = self._decode_tps or ((usage.completion_tokens - 1) / spent if counted else None)
        return Timings(load_s=None, ttft_s=ttft, prefill_tps=self._prefill_tps, decode_tps=decode)

    def _add(self, piece: CallPiece) -> None:
        place = len(self._calls) if piece.index is None else piece.index
        call = self._calls.setdefault(place, _Call())
        if len(self._calls) > _MOST_CALLS:
            raise EngineError(f"{self._server} answers with more than {_MOST_CALLS} calls of tools.")
        call.id = piece.id or call.id
        call.name = piece.name or call.name
        call.arguments.append(piece.arguments)

    def _called(self, call: _Call, text: str) -> ToolCall:
        if self._tools is None:
            raise EngineError(f"{self._server} answers with a call of a tool, and no tools were given.")
        return self._tools.called(call.name, "".join(call.arguments) or "{}", call.id, text)
