"""The engine's side of one text: a prompt in chunks, then token after token, or several guessed ones at once.

It asks for each step and is sent what that gives, so that whoever has the engine may evaluate several texts together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.cache import Trail
from edgepack.decoding.lookup import Lookup
from edgepack.decoding.pace import Pace
from edgepack.decoding.seat import Ask, Asking, Seat
from edgepack.errors import Cancelled

Logits = NDArray[np.float32]


class Steps:
    """Gives the logits after each token of a text, in a seat. It runs on the owner's thread, except for ``cancel``.

    ``exactly`` takes from the cache only what a prefill from nothing would put there in the same steps; without it,
    whatever the prompt shares. ``spelt`` may give other ids of the same text that share more, for the prompt and what
    the cache has said; ``prompt`` is what was evaluated in the end. ``rolls_from`` is None, or how many tokens of the
    prompt stay when the context is full: then the older half of the others is forgotten, and the rest evaluated anew.
    With ``looks_up``, tokens are guessed by prompt lookup, with ``drafts`` by the seat's draft model where that finds
    nothing. ``trail`` has the prompt's first tokens evaluated anew in just these steps, whatever is in the cache.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        exactly: bool = True,
        spelt: Callable[[Sequence[int], Sequence[int]], Sequence[int]] | None = None,
        rolls_from: int | None = None,
        looks_up: bool = False,
        drafts: bool = False,
        trail: Trail | None = None,
    ) -> None:
        self._seat: Seat
        self.prompt = prompt
        self._exactly = exactly
        self._spelt = spelt
        self._rolls_from = rolls_from
        self._looks_up = looks_up
        self._lookup: Lookup | None = None
        self._drafting = Pace() if drafts else None
        self._trail = trail
        self.cancelled = False
        self._guessed: deque[tuple[int, Logits]] = deque()  # a token that may come, and the logits after it
        self._guess = 0
        self._pace: Pace | None = None  # of what made the guess
        self.cached = 0
        self.cached_trail: Trail = ()
        self.rolled_off = 0
        self.drafted = self.accepted = 0

    def prefill(self, seat: Seat) -> Asking[Logits]:
        """Evaluate the prompt in a seat, at least its last token, and return the logits after it.

        A cancel that comes between two chunks is seen before the next. Raises ``Cancelled``.
        """
        self._seat = seat
        if self._spelt is not None:
            self.prompt = self._spelt(self.prompt, seat.cache.said)
        self._lookup = Lookup(self.prompt) if self._looks_up else None
        if seat.seats.draft is not None:
            seat.seats.draft.begin()
        share = self._share() if self._trail is None else (yield from self._follow(self._trail))
        self.cached, self.cached_trail = share, seat.cache.trail
        return (yield from self._evaluate(self.prompt[share:]))

    def after(self, token: int, left: int) -> Asking[Logits]:
        """Return the logits after one more token, of which at most ``left`` more will be asked for."""
        if self._lookup is not None:
            self._lookup.append(token)
        if self._guessed and self._guessed[0][0] == token:
            self.accepted += 1
            _, logits = self._guessed.popleft()
            return logits
        yield from self.settle()
        context, length = self._seat.options.context, len(self._seat.cache.tokens)
        guess = self._guess_after(token, min(left - 1, context - length - 1))
        if not guess:
            return (yield from self._step([token]))
        rows = yield from self._step([token, *guess], every=True)
        self._guess = len(guess)
        self.drafted += len(guess)
        self._guessed.extend(zip(guess, rows[1:], strict=True))
        first: Logits = rows[0]
        return first

    def end(self, token: int | None) -> Asking[None]:
        """Leave the cache as the text is, whose last token, if it has one that was not asked after, is ``token``."""
        yield from self.settle()
        self._seat.cache.chosen = token

    def settle(self) -> Asking[None]:
        """Forget the guessed tokens that did not come."""
        if self._pace is not None and self._guess:
            wrong, held = len(self._guessed), self._seat.cache.tokens
            self._pace.learn(self._guess, self._guess - wrong)
            yield from self._stand_after(held[: len(held) - wrong])
            self._guessed.clear()
            self._guess = 0

    def cancel(self) -> None:
        """Let no further step begin. From any thread."""
        self.cancelled = True

    def _guess_after(self, token: int, most: int) -> list[int]:
        if most < 1:
            return []
        if self._lookup is not None and (guess := self._lookup.guess(most)):
            self._pace = self._lookup.pace
            return guess
        if self._drafting is None:
            return []
        self._pace = self._drafting
        return self._seat.guess([*self._seat.cache.tokens, token], min(self._pace.most, most), self._check_cancelled)

    def _share(self) -> int:
        """Cut the cache back to what the prompt can take over, and return how many tokens that is."""
        seat = self._seat
        chunk = seat.options.chunk if self._exactly else None
        while seat.rewind(share := seat.cache.shared(self.prompt, chunk)) < share:
            pass  # of what an engine kept instead, the prompt may share less
        return share

    def _follow(self, trail: Trail) -> Asking[int]:
        self._seat.rewind(0)
        done = 0
        for kept, evaluated, count in trail:
            for _ in range(count):
                step = list(self.prompt[done : done + kept])
                done += kept
                # What was cut off may have been another's: any token makes the step as large as it was.
                yield from self._step(step + step[-1:] * (evaluated - kept))
                yield from self._stand_after(self.prompt[:done])
        return done

    def _stand_after(self, tokens: Sequence[int]) -> Asking[None]:
        """Cut the cache back to its first tokens, and evaluate again what the engine did not keep of them."""
        kept = self._seat.rewind(len(tokens))
        if kept < len(tokens):
            yield from self._evaluate(tokens[kept:])

    def _evaluate(self, tokens: Sequence[int]) -> Asking[Logits]:
        chunk = self._seat.options.chunk
        for start in range(0, len(tokens), chunk):
            logits = yield from self._step(tokens[start : start + chunk])
        return logits

    def _step(self, tokens: Sequence[int], every: bool = False) -> Asking[Logits]:
        self._check_cancelled()
        held, context = self._seat.cache.tokens, self._seat.options.context
        if self._rolls_from is not None and len(held) + len(tokens) > context:
            return (yield from self._roll(held, tokens))
        return (yield Ask(tokens, every))

    def _roll(self, held: Sequence[int], tokens: Sequence[int]) -> Asking[Logits]:
        """Forget the older half of what may be forgotten, and return the logits after the last of ``tokens``."""
        kept = self._rolls_from or 0
        forgotten = max(1, (len(held) - kept) // 2)
        rest = [*held[kept + forgotten :], *tokens]
        yield from self._stand_after(held[:kept])
        self.rolled_off += forgotten
        return (yield from self._evaluate(rest))

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled("The stream was cancelled.")
