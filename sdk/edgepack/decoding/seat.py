"""The sequences of a session, each with the bookkeeping of its cache. All of it is called on the owner's thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.cache import Cache, Step
from edgepack.decoding.draft import Draft
from edgepack.errors import Cancelled, EngineCrashedError, EngineError, EngineTimeoutError
from edgepack.prefix import common_length
from edgepack.runtime import Options, Sequences, Session, Snapshots
from edgepack.runtime import Step as Appended

T = TypeVar("T")
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ask:
    """Tokens that a text wants appended as one step: for float32 [n_vocab], the logits after the last of them, or with
    ``every`` for [n_tokens, n_vocab]."""

    tokens: Sequence[int]
    every: bool = False


Asking = Generator[Ask, Logits, T]
"""What asks for steps until it returns: it is sent what each gives, and thrown what each raises."""


class Seats:
    """A session, its sequences, and a draft model that guesses for the first where one is loaded."""

    def __init__(self, session: Session, options: Options, draft: Draft | None) -> None:
        self.session = session
        # Asked once: of a protocol it takes longer than all of a step's bookkeeping.
        self.several = session if isinstance(session, Sequences) else None
        self.options = options
        self.draft = draft
        self.out_of_use: str | None = None
        self._each = [Seat(self, number) for number in range(options.sequences)]

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._each)

    def __len__(self) -> int:
        return len(self._each)

    def __getitem__(self, number: int) -> Seat:
        return self._each[number]

    def check(self) -> None:
        """Raise ``EngineError`` where the session is closed or has failed."""
        if self.out_of_use is not None:
            raise EngineError(self.out_of_use, hint="Load the bundle again.")

    def evaluate(self, asked: Sequence[tuple[Seat, Ask]]) -> list[Logits]:
        """Append to different sequences in one step, and return what each asks for."""
        self.check()
        session, several = self.session, self.several
        try:  # no context, which takes as long to enter and leave as all of the bookkeeping
            if several is not None:
                found = several.forward_batch([Appended(seat.number, ask.tokens, ask.every) for seat, ask in asked])
            else:
                found = [(session.forward_all if ask.every else session.forward)(ask.tokens) for _, ask in asked]
        except EngineError as error:
            self.failed(error)
            raise
        for seat, ask in asked:
            seat.cache.append(ask.tokens)
        return found

    @contextmanager
    def watched(self, lost: bool = True) -> Iterator[None]:
        """Note a failure of the engine; ``lost``: a crash takes the caches with it."""
        self.check()
        try:
            yield
        except EngineError as error:
            self.failed(error, lost)
            raise

    def failed(self, error: EngineError, lost: bool = True) -> None:
        """Note what a failure means for the next request."""
        if not isinstance(error, Cancelled | EngineCrashedError | EngineTimeoutError):
            self.out_of_use = f"The engine failed earlier: {error.message}"
        elif lost:  # after a crash another process takes over, with nothing in its caches
            for seat in self._each:
                seat.cache.cut(seat.held if isinstance(error, Cancelled) else 0)


class Seat:
    """One sequence: what its cache holds, and what cuts it, fills it or copies it."""

    def __init__(self, seats: Seats, number: int) -> None:
        self.seats = seats
        self.number = number
        self.cache = Cache()

    @property
    def options(self) -> Options:
        """How the session was opened."""
        return self.seats.options

    @property
    def held(self) -> int:
        """The tokens that the engine holds of it."""
        several = self.seats.several
        return self.seats.session.length if several is None else several.length_of(self.number)

    def forward(self, tokens: Sequence[int]) -> Logits:
        """Append tokens as one step and return the logits after the last: float32 [n_vocab]."""
        return self.seats.evaluate([(self, Ask(tokens))])[0]

    def forward_all(self, tokens: Sequence[int]) -> Logits:
        """Append tokens as one step and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self.seats.evaluate([(self, Ask(tokens, every=True))])[0]

    def step(self, evaluate: Callable[[Sequence[int]], Logits], tokens: Sequence[int]) -> Logits:
        """Append tokens as one step by another method of the session's, and return what that gives."""
        with self.seats.watched():
            found = evaluate(tokens)
        self.cache.append(tokens)
        return found

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens and return how many the engine kept, which may be fewer."""
        several = self.seats.several
        with self.seats.watched():
            if length < len(self.cache.tokens):
                if several is None:
                    kept = self.seats.session.rewind(length)
                else:
                    kept = several.rewind_sequence(self.number, length)
                self.cache.cut(kept)
        return len(self.cache.tokens)

    def take(self, other: Seat, length: int) -> None:
        """Hold the first ``length`` tokens of another sequence, or as many as the engine can copy, and no others."""
        several = self.seats.several
        assert several is not None
        with self.seats.watched():
            kept = several.copy(other.number, self.number, length)
        self.cache.tokens, self.cache.steps = list(other.cache.tokens), list(other.cache.steps)
        self.cache.cut(kept)

    def shares(self, prompt: Sequence[int]) -> int:
        """Return how many tokens a prompt has in common with what it holds, from the beginning."""
        return common_length(self.cache.tokens, prompt)

    def guess(self, text: Sequence[int], most: int, go_on: Callable[[], None]) -> list[int]:
        """Return what the draft model guesses: see ``Draft.guess``. Nothing without one."""
        if self.seats.draft is None:
            return []
        with self.seats.watched(lost=False):
            return self.seats.draft.guess(text, most, go_on)

    def snapshot(self, length: int) -> bytes:
        """Return the state of the first ``length`` tokens, b"" where the session cannot save it, or not of so few.

        The cache is the same afterwards.
        """
        session = self.seats.session
        if self.seats.several is not None or not isinstance(session, Snapshots):
            return b""
        with self.seats.watched():
            whole = session.snapshot()
        if length == len(self.cache.tokens):
            return whole
        tokens, steps = list(self.cache.tokens), list(self.cache.steps)
        state = b""
        if self.rewind(length) == length:
            with self.seats.watched():
                state = session.snapshot()
        self.restore(whole, tokens, steps)
        return state

    def restore(self, state: bytes, tokens: Sequence[int], steps: Sequence[Step]) -> None:
        """Put a snapshot of these tokens into the cache; one that the session refuses leaves the cache empty.

        A session of several sequences takes none, and keeps what it has.
        """
        if self.seats.several is not None:
            return
        self.rewind(0)
        session = self.seats.session
        if isinstance(session, Snapshots):
            with self.seats.watched(), suppress(ValueError):
                session.restore(state)
                self.cache.tokens, self.cache.steps = list(tokens), list(steps)
