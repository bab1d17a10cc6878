"""What a generation returns: plain frozen data, each with ``to_dict`` for JSON. No behaviour, no engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgepack.sample import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted: ``prompt_tokens`` with BOS, ``completion_tokens`` with the stop token that ended the text."""

    prompt_tokens: int
    completion_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens a second; a figure that was not reached is None.

    ``load_s``: opening the model, measured once by the loader. ``ttft_s``: from the call to the first token.
    ``prefill_tps``: prompt tokens over the time of their evaluation. ``decode_tps``: (n - 1) / (t_last - t_first)
    over the n tokens that were generated, the stop token included.
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
    other way round.
    """

    text: str
    token_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"text": self.text, "token_ids": list(self.token_ids)}


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation.

    ``text`` is the new text only, cut before a matched stop string. ``token_ids`` are all generated tokens except a
    stop token; the tokens that spelled a stop string are among them. ``finish_reason``: "stop" (a stop token or a
    stop string), "length" (``max_tokens``, or the end of the context), "cancelled". ``stop`` is the stop string or
    the stop token's id that ended the text, else None. ``sampling`` is what was used, with the seed.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    sampling: Sampling
    usage: Usage
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop": self.stop,
            "sampling": self.sampling.to_dict(),
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
        }
