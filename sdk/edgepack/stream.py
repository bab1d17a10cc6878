"""A generation in progress: from the ids of a prompt to pieces of text, on a session that serves one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event, RLock
from time import perf_counter
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgepack.detokenize import Detokenizer
from edgepack.errors import Cancelled, EngineError, UsageError
from edgepack.results import Chunk, FinishReason, Result, Timings, Usage
from edgepack.runtime import Session
from edgepack.sample import Sampler, Sampling
from edgepack.stop import StopMatcher
from edgepack.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    ``prompt``: the token ids; ``limit``: the most tokens to generate; ``stop_ids`` and ``stops`` end the text;
    ``at_start``: no text stands before the new one; ``began``: ``perf_counter`` when the call was made.
    """

    prompt: Sequence[int]
    sampling: Sampling
    limit: int
    stop_ids: frozenset[int]
    stops: Sequence[str]
    at_start: bool
    began: float


class Desk:
    """A session that serves one stream at a time, and that is out of use once its engine has failed."""

    def __init__(self, session: Session, chunk: int) -> None:
        self.session = session
        self.chunk = chunk
        self._holder: Stream | None = None
        self._out_of_use: str | None = None
        # Re-entrant, because a signal handler that cancels may interrupt the code that releases.
        self._lock = RLock()

    def check_free(self) -> None:
        """Raise ``EngineError`` where the engine is closed or failed, ``UsageError`` where a stream is open."""
        if self._out_of_use is not None:
            raise EngineError(self._out_of_use, hint="Load the bundle again.")
        if self._holder is not None:
            raise UsageError(
                "Another stream of this model is still open.",
                hint="Leave its with block first, or load the bundle a second time.",
            )

    def take(self, stream: Stream) -> None:
        """Give the session to a stream."""
        self.check_free()
        self._holder = stream

    def release(self, stream: Stream) -> None:
        """Take the session back, if this stream has it. No cancel of that stream reaches the engine any more."""
        with self._lock:
            if self._holder is stream:
                self._holder = None

    def cancel(self, stream: Stream) -> None:
        """Stop the engine, if this stream has it. From any thread."""
        with self._lock:
            if self._holder is stream:
                self.session.cancel()

    def run(self, work: Callable[[Sequence[int]], NDArray[np.float32]], ids: Sequence[int]) -> NDArray[np.float32]:
        """Call the session's ``forward`` or ``forward_all``, and remember a failure."""
        try:
            return work(ids)
        except Cancelled:
            raise
        except EngineError as error:
            self._out_of_use = f"The engine failed earlier: {error.message}"
            raise

    def close(self) -> None:
        """End the stream that is open, and the session."""
        if self._holder is not None:
            self._holder.close()
        self.session.close()
        self._out_of_use = self._out_of_use or "The model is closed."


class Stream:
    """A generation that is read piece by piece: a context manager that yields ``Chunk``, then has a ``result``.

    The texts of all chunks joined are the result's text, and their ids its ids. Leaving the ``with`` block early ends
    the generation with the finish reason "cancelled" and frees the model. It belongs to the model's thread, except
    for ``cancel``.
    """

    def __init__(self, desk: Desk, tokenizer: Tokenizer, request: Request, load_s: float | None) -> None:
        desk.check_free()
        self._desk = desk
        self._request = request
        self._load_s = load_s
        self._sampler = Sampler(request.sampling, request.prompt)
        self._matcher = StopMatcher(request.stops)
        self._detokenizer = Detokenizer(tokenizer, at_start=request.at_start)
        self._cancelled = Event()
        self._chunks: Iterator[Chunk] | None = None
        self._over = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason = "cancelled"
        self._stop: str | int | None = None
        self._generated = 0
        self._prefill_s = 0.0
        self._first = self._last = 0.0
        self._result: Result | None = None

    def __enter__(self) -> Stream:
        if self._chunks is not None:
            raise UsageError("A stream was entered twice.", hint="Ask the model for a new one.")
        self._desk.take(self)
        self._chunks = self._generate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._chunks is None:
            raise UsageError("A stream was read outside of a with block.", hint="with model.stream(...) as stream: ...")
        if self._over:
            raise StopIteration
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            self._end()
            raise
        self._texts.append(chunk.text)
        self._token_ids.extend(chunk.token_ids)
        return chunk

    def cancel(self) -> None:
        """End the generation as soon as the engine can, with the finish reason "cancelled". From any thread."""
        self._cancelled.set()
        self._desk.cancel(self)

    def close(self) -> None:
        """End the generation and free the model. Leaving the ``with`` block does it; safe to call twice."""
        if self._chunks is not None and not self._over:
            self._result = self._finished()
            self._end()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        if self._result is None:
            raise UsageError("The stream has no result.", hint="Read it to its end, or leave its with block, first.")
        return self._result

    def _generate(self) -> Iterator[Chunk]:
        request, text = self._request, ""
        pending: list[int] = []  # tokens whose text has not been handed out
        try:
            logits = self._prefill()
            while True:
                token = self._sampler(logits)
                self._count()
                if token in request.stop_ids:
                    self._finish_reason, self._stop = "stop", token
                    break
                pending.append(token)
                text = self._matcher.push(self._detokenizer.push(token))
                if self._matcher.matched is not None:
                    break
                if self._generated == request.limit:
                    self._finish_reason = "length"
                    break
                if text:
                    yield Chunk(text, tuple(pending))
                    text = ""
                    pending.clear()
                logits = self._forward([token])
        except Cancelled:
            pass
        # Held back until now: an unfinished character, or the beginning of a stop string that did not come.
        text += self._matcher.push(self._detokenizer.finish()) + self._matcher.finish()
        if self._matcher.matched is not None:
            self._finish_reason, self._stop = "stop", self._matcher.matched
        if text or pending:
            yield Chunk(text, tuple(pending))

    def _prefill(self) -> NDArray[np.float32]:
        """Evaluate the prompt in steps: a cancel that comes between two of them is seen before the next."""
        begun, prompt, size = perf_counter(), self._request.prompt, self._desk.chunk
        self._desk.session.rewind(0)
        for start in range(0, len(prompt), size):
            logits = self._forward(prompt[start : start + size])
        self._prefill_s = perf_counter() - begun
        return logits

    def _forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self._cancelled.is_set():
            raise Cancelled("The stream was cancelled.")
        return self._desk.run(self._desk.session.forward, tokens)

    def _end(self) -> None:
        self._over = True
        self._desk.release(self)

    def _count(self) -> None:
        self._last = perf_counter()
        if not self._generated:
            self._first = self._last
        self._generated += 1

    def _finished(self) -> Result:
        return Result(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            stop=self._stop,
            sampling=self._sampler.sampling,
            usage=Usage(prompt_tokens=len(self._request.prompt), completion_tokens=self._generated),
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        decoding = self._last - self._first
        return Timings(
            load_s=self._load_s,
            ttft_s=self._first - self._request.began if self._generated else None,
            prefill_tps=len(self._request.prompt) / self._prefill_s if self._prefill_s else None,
            decode_tps=(self._generated - 1) / decoding if decoding else None,
        )
