"""One text in the making, on the owner's thread: logits to tokens, tokens to characters, until something ends it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.cache import Trail
from edgepack.decoding.choosing import Chooser, Thinks
from edgepack.decoding.repro import Repro, Setup
from edgepack.decoding.results import Chunk, FinishReason, Result, Timings, Usage
from edgepack.decoding.sample import Sampler, Sampling
from edgepack.decoding.seat import Ask, Asking, Seat
from edgepack.decoding.steps import Steps
from edgepack.errors import Cancelled
from edgepack.text.detokenize import Detokenizer
from edgepack.text.respelling import respelt
from edgepack.text.stop import StopMatcher
from edgepack.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgepack.decoding.logprobs import TokenLogprob
    from edgepack.structured.constrain import Grammar
    from edgepack.text.tools import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate.

    ``prompt``: the token ids; ``limit``: the most tokens to generate; ``stop_ids`` and ``stops`` end the text;
    ``at_start``: no text stands before the new one; ``began``: ``perf_counter`` when the call was made.
    ``grammar`` binds the text; ``n_best`` asks for logprobs with so many alternatives; ``looks_up``, ``drafts``,
    ``exactly``, ``rolls_from``, ``trail``: see ``Steps``; ``truncated``: tokens that were left out of the prompt.
    ``thinks`` divides the text, see ``Chooser``; ``grammar`` and ``stops`` are then the answer's. ``parse`` takes tool
    calls out of the finished answer, whose ids it gets where they say no more than that.
    """

    prompt: Sequence[int]
    sampling: Sampling
    limit: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...]
    at_start: bool
    began: float
    setup: Setup
    load_s: float | None = None
    grammar: Grammar | None = None
    n_best: int | None = None
    looks_up: bool = False
    drafts: bool = False
    exactly: bool = True
    rolls_from: int | None = None
    trail: Trail | None = None
    truncated: int = 0
    thinks: Thinks | None = None
    parse: Callable[[str, Sequence[int]], tuple[str, tuple[ToolCall, ...]]] | None = None


class Generation:
    """The state of one text. ``go_on`` runs on the owner's thread, ``cancel`` on any, ``result`` when no step runs."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._steps = Steps(
            request.prompt,
            exactly=request.exactly,
            spelt=self._spelt if not request.exactly and request.rolls_from is None else None,
            rolls_from=request.rolls_from,
            looks_up=request.looks_up,
            drafts=request.drafts,
            trail=request.trail,
        )
        self._sampling = request.sampling.resolved()
        self._sampler: Sampler
        self._matcher = StopMatcher(request.stops)
        self._chooser = Chooser(
            tokenizer,
            request.grammar,
            request.thinks,
            limit=request.limit,
            stop_ids=request.stop_ids,
            at_start=request.at_start,
        )
        self._detokenizer = Detokenizer(tokenizer, at_start=request.at_start)
        self._course: Generator[Ask | Chunk, NDArray[np.float32] | None, None]
        self._pending: list[int] = []  # tokens whose text has not been handed out
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "cancelled"
        self._stop: str | int | None = None
        self._generated = 0
        self._prefill_s = 0.0
        self._first = self._last = 0.0

    @property
    def prompt(self) -> Sequence[int]:
        """What was asked for, in token ids."""
        return self._request.prompt

    def begin(self, seat: Seat) -> None:
        """Go on in a seat from now on."""
        self._course = self._generate(seat)

    def go_on(self, given: NDArray[np.float32] | BaseException | None = None) -> Ask | Chunk | None:
        """Return the next step that it needs, with whose logits or error it goes on, or a piece; None at the end."""
        try:
            return self._course.throw(given) if isinstance(given, BaseException) else self._course.send(given)
        except StopIteration:
            return None

    def cancel(self) -> None:
        """End the text as soon as the engine can."""
        self._steps.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._steps.cancelled

    def _generate(self, seat: Seat) -> Generator[Ask | Chunk, Any, None]:
        request, reasoning, text = self._request, "", ""
        try:
            logits = yield from self._prefill(seat)
            while True:
                token = self._choose(logits)
                if token is None:  # nothing more fits
                    self._finish_reason = "length"
                    break
                self._count()
                if token in request.stop_ids:
                    self._finish_reason, self._stop = "stop", token
                    break
                self._keep(token, logits)
                reasoning, answer = self._divided(token)
                text = self._matcher.push(answer)
                if self._matcher.matched is not None:
                    break
                if self._chooser.finished:
                    self._finish_reason = "length" if self._chooser.closed else "stop"
                    break
                if self._generated == request.limit:
                    self._finish_reason = "length"
                    break
                if reasoning or text:
                    yield self._chunk(reasoning, text)
                    reasoning = text = ""
                logits = yield from self._steps.after(token, request.limit - self._generated)
            yield from self._steps.end(token)
        except Cancelled:
            pass
        # Held back until now: the beginning of a mark or of a stop string that did not come. An unfinished character
        # stays out.
        thought, answer = ("", "") if self._chooser.divider is None else self._chooser.divider.finish()
        reasoning += thought
        text += self._matcher.push(answer) + self._matcher.finish()
        if self._matcher.matched is not None:
            self._finish_reason, self._stop = "stop", self._matcher.matched
        if reasoning or text or self._pending:
            yield self._chunk(reasoning, text)

    def _prefill(self, seat: Seat) -> Asking[NDArray[np.float32]]:
        begun = perf_counter()
        logits = yield from self._steps.prefill(seat)
        self._prefill_s = perf_counter() - begun
        self._sampler = Sampler(self._sampling, self._steps.prompt)
        return logits

    def _spelt(self, prompt: Sequence[int], said: Sequence[int]) -> Sequence[int]:
        """Return the prompt in the tokens of the cache, where they leave the answer as much room."""
        request, context = self._request, self._request.setup.context
        ids = respelt(prompt, said, self._tokenizer)
        return ids if len(ids) + request.limit - 1 <= context else prompt

    def _choose(self, logits: NDArray[np.float32]) -> int | None:
        """Return the next token, None where an answer that is bound to a grammar has to end here."""
        return self._chooser.choose(logits, self._sampler, self._request.limit - self._generated)

    def _divided(self, token: int) -> tuple[str, str]:
        """Return what a token adds to the thought, and what to the answer."""
        divider = self._chooser.divider
        return ("", self._detokenizer.push(token)) if divider is None else divider.push(token)

    def _keep(self, token: int, logits: NDArray[np.float32]) -> None:
        self._pending.append(token)
        if self._request.n_best is not None:
            from edgepack.decoding.logprobs import token_logprob

            text_of = self._tokenizer.piece
            self._logprobs.append(token_logprob(logits, token, self._request.n_best, text_of))

    def _chunk(self, reasoning: str, text: str) -> Chunk:
        logprobs = None if self._request.n_best is None else tuple(self._logprobs)
        chunk = Chunk(text, tuple(self._pending), logprobs, reasoning)
        self._pending.clear()
        self._logprobs.clear()
        return chunk

    def _count(self) -> None:
        self._last = perf_counter()
        if not self._generated:
            self._first = self._last
        self._generated += 1

    def result(self, chunks: Sequence[Chunk], cut: bool) -> Result:
        """Return the pieces that were read as a result; ``cut``: there were more."""
        request, steps, divider = self._request, self._steps, self._chooser.divider
        reason, stop = ("cancelled", None) if cut else (self._finish_reason, self._stop)
        text = "".join(chunk.text for chunk in chunks)
        token_ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        tool_calls: tuple[ToolCall, ...] = ()
        if request.parse is not None and reason == "stop":
            begins = divider.answer_from if divider is not None and divider.thinks else 0
            whole = begins is not None and not isinstance(stop, str)
            text, tool_calls = request.parse(text, token_ids[begins:] if whole else ())
        return Result(
            text=text,
            token_ids=token_ids,
            finish_reason=reason,
            stop=stop,
            sampling=self._sampling,
            usage=Usage(
                prompt_tokens=len(steps.prompt),
                completion_tokens=self._generated,
                cached_tokens=steps.cached,
                truncated_tokens=request.truncated + steps.rolled_off,
                drafted_tokens=steps.drafted,
                accepted_tokens=steps.accepted,
                reasoning_tokens=divider.tokens if divider is not None and divider.thinks else 0,
            ),
            timings=self._timings(),
            repro=self._repro(),
            tool_calls=tool_calls,
            logprobs=None
            if request.n_best is None
            else tuple(each for chunk in chunks for each in chunk.logprobs or ()),
            reasoning="".join(chunk.reasoning for chunk in chunks) if divider is not None and divider.thinks else None,
        )

    def _timings(self) -> Timings:
        decoding = self._last - self._first
        evaluated = len(self._steps.prompt) - self._steps.cached
        return Timings(
            load_s=self._request.load_s,
            ttft_s=self._first - self._request.began if self._generated else None,
            prefill_tps=evaluated / self._prefill_s if self._prefill_s else None,
            decode_tps=(self._generated - 1) / decoding if decoding else None,
        )

    def _repro(self) -> Repro:
        request = self._request
        return Repro(
            setup=request.setup,
            prompt_ids=tuple(self._steps.prompt),
            at_start=request.at_start,
            cached=self._steps.cached_trail,
            max_tokens=request.limit,
            stop=request.stops,
            constraint=None if request.grammar is None else request.grammar.asked,
            prompt_lookup=request.looks_up,
            rolls_from=request.rolls_from,
            draft=request.drafts,
            thought=None if request.thinks is None else request.thinks.thought,
            thinking_tokens=None if request.thinks is None else request.thinks.most,
        )
