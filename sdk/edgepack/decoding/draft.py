"""A draft model: a small model with the vocabulary of a large one guesses what that will say, so that the large one
checks several tokens in one step.

A guess never changes the text: each token is still chosen by the sampler from the large model's own logits, and the
first that differs ends the guess (Y. Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
2022, checks guesses alike; with a sampler there, a token that is likely enough passes, and here only the one that is
drawn). It knows ids only.

Engines round differently when they evaluate one token or many, so that guesses, and with them the large model's own
steps, follow from a text alone only where the small model's cache does: of what an earlier text left there, it keeps
what it would evaluate in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgepack.decoding.cache import Cache
from edgepack.errors import Cancelled, EngineCrashedError, EngineTimeoutError
from edgepack.prefix import common_length
from edgepack.runtime import Options, Session


class Draft:
    """The small model's session, whose cache follows whatever text it is asked about.

    It runs on the thread that opened the session, except for ``cancel``. ``n_vocab`` counts the ids that both models
    know: the small one is asked about no other, and guesses no other.
    """

    def __init__(self, session: Session, options: Options, n_vocab: int) -> None:
        self._session = session
        self._options = options
        self._n_vocab = n_vocab
        self._cache = Cache()
        self._text = 0  # how many of its tokens were the text's when a guess was last asked for
        self._begins = True

    def begin(self) -> None:
        """Let the next text be another one, whatever the last one was."""
        self._begins = True

    def guess(self, text: Sequence[int], most: int, go_on: Callable[[], None]) -> list[int]:
        """Return the tokens that the small model finds likeliest after a text, at most ``most``; none where the text
        has an id that it does not know, or no room is left in its context.

        ``go_on`` is called before each step, and may raise. Raises as ``Session.forward``.
        """
        most = min(most, self._options.context - len(text) + 1)  # the last guess needs no room
        if most < 1 or max(text[self._shared(text) :]) >= self._n_vocab:
            return []
        new = text[self._stand_before(text) :]
        self._begins = False
        for start in range(0, len(new), self._options.chunk):
            go_on()
            token = self._likeliest_after(new[start : start + self._options.chunk])
        self._text = len(text)
        guess = [token]
        while len(guess) < most:
            go_on()
            guess.append(self._likeliest_after(guess[-1:]))
        return guess

    def cancel(self) -> None:
        """Stop a step that is running. From any thread."""
        self._session.cancel()

    def close(self) -> None:
        """Free the engine's memory. Safe to call twice."""
        self._session.close()

    def _stand_before(self, text: Sequence[int]) -> int:
        """Cut the cache back to what the text can take over, and return how many tokens that is."""
        while (shared := self._shared(text)) < len(self._cache.tokens):
            self._cache.cut(self._session.rewind(shared))
        return shared

    def _shared(self, text: Sequence[int]) -> int:
        """Return how many tokens of the text can stay in the cache, never all of it."""
        if self._begins:
            return self._cache.shared(text, self._options.chunk)
        held = self._cache.tokens
        # It mostly goes on where it was, and slices are compared much faster than their items.
        start = self._text if list(text[: self._text]) == held[: self._text] else 0
        return min(start + common_length(held[start:], text[start:]), len(text) - 1)

    def _likeliest_after(self, tokens: Sequence[int]) -> int:
        try:
            logits = self._session.forward(tokens)
        except Cancelled:
            self._cache.cut(self._session.length)
            raise
        except (EngineCrashedError, EngineTimeoutError):
            self._cache.cut(0)  # another process takes over, with nothing in its cache
            raise
        self._cache.append(tokens)
        return int(np.argmax(logits[: self._n_vocab]))
