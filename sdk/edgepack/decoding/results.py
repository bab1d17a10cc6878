"""What a generation returns: plain frozen data, each with ``to_dict`` for JSON. No behaviour, no engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepack.decoding.sample import Sampling
from edgepack.errors import brief

if TYPE_CHECKING:
    from edgepack.decoding.logprobs import TokenLogprob
    from edgepack.decoding.repro import Repro
    from edgepack.text.tools import ToolCall

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted: ``prompt_tokens`` with BOS, ``completion_tokens`` with the stop token that ended the text.

    ``reasoning_tokens`` of the completion are its thought with the marks around it. ``cached_tokens`` of the prompt
    were in the KV cache already. ``truncated_tokens`` did not fit and were left out; they are not among the prompt's.
    Of ``drafted_tokens``, guessed by prompt lookup or by a draft model, ``accepted_tokens`` came true. ``counted`` is
    False where a server did not say, as of an answer that was cancelled: then all of them are 0.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    truncated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0
    counted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``counted`` where it is False."""
        plain = asdict(self)
        if self.counted:
            del plain["counted"]
        return plain


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens a second; a figure that was not reached is None.

    ``load_s``: opening the model, measured once by the loader. ``ttft_s``: from the call to the first token.
    ``prefill_tps``: prompt tokens that were not cached over the time of their evaluation. ``decode_tps``:
    (n - 1) / (t_last - t_first) over the n tokens that were generated, the stop token included.
    """

    load_s: float | None
    ttft_s: float | None
    prefill_tps: float | None
    decode_tps: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream: new text, and the tokens that were generated since the chunk before.

    Text may lag behind the tokens (an unfinished character, the possible beginning of a stop string), never the
    other way round. ``reasoning`` is what is new of the model's thought, "" for a piece without any. ``logprobs`` has
    an entry for each token where they were asked for. A server may tell no tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        plain = {"text": self.text, "reasoning": self.reasoning, "token_ids": list(self.token_ids)}
        return plain if self.logprobs is None else plain | {"logprobs": [each.to_dict() for each in self.logprobs]}


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation.

    ``text`` is the new text only, cut before a matched stop string, and before a character that the end left without
    all its bytes. ``token_ids`` are all generated tokens except a stop token; those that spelled what was cut are among
    them. ``finish_reason``: "stop" (a stop token or a
    stop string), "length" (``max_tokens``, or the end of the context), "cancelled". ``stop`` is the stop string or
    the stop token's id that ended the text, else None. ``sampling`` is what was used, with the seed. ``tool_calls`` are
    what the model asks the application to do; their words are not part of the text. ``reasoning`` is what the model
    thought before its answer, without marks, None where it did not think. ``logprobs`` has an entry for each
    of ``token_ids`` where they were asked for. ``repro`` is what it takes to get the same again.

    Of a server's answer (``edgepack.connect``) there is what the server tells: ``sampling`` and ``repro`` are None,
    since it settles and keeps those itself, and ``token_ids`` may be empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    sampling: Sampling | None
    usage: Usage
    timings: Timings
    repro: Repro | None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str | None = None

    def __repr__(self) -> str:
        calls = f", calls {brief(', '.join(call.name for call in self.tool_calls))}" if self.tool_calls else ""
        used, speed = self.usage, self.timings.decode_tps
        rate = "" if speed is None else f", {speed:.1f} tokens/s"
        ends = f"{self.finish_reason} after {used.prompt_tokens} + {used.completion_tokens} tokens"
        return f'<Result "{brief(self.text)}"{calls}, {ends}{rate}>'

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        plain = {
            "text": self.text,
            "reasoning": self.reasoning,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop": self.stop,
            "sampling": None if self.sampling is None else self.sampling.to_dict(),
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "repro": None if self.repro is None else self.repro.to_dict(),
        }
        return plain if self.logprobs is None else plain | {"logprobs": [each.to_dict() for each in self.logprobs]}
