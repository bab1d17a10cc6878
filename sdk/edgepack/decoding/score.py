"""Score: how likely a model finds a text. Each token is predicted from those before it, in windows of the context.

A text's tokens after the first are cut into consecutive pieces of ``context`` tokens. Before each piece the model
reads BOS where the text begins with it, and else the token before the piece; so each token after the first is scored
exactly once, given at most the ``context`` tokens before it in its window, and a text may be longer than the context.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.manifest import Manifest
from edgepack.decoding.logprobs import TokenLogprob, token_logprob
from edgepack.errors import EngineError, UsageError
from edgepack.text.tokenizer import Tokenizer

SLICE = 32
"""Tokens whose logits are held at once: 16 MB at a vocabulary of 128k."""


class Reader(Protocol):
    """What reads a text and says what it expects next: an ``edgepack.Model`` is one."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def context(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def tokenize(self, text: str) -> list[int]: ...
    def evaluate(self, ids: Sequence[int], slice_tokens: int) -> Iterator[NDArray[np.float32]]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """What a model reads from an empty cache, and the token that follows each of it in the text."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """The likelihood of a text: ``log_likelihood`` is the sum of ``logprobs``, in nats, one for each scored token."""

    log_likelihood: float
    logprobs: tuple[TokenLogprob, ...]

    @property
    def tokens(self) -> int:
        """Tokens scored: all but the first, which is BOS where the bundle puts it there."""
        return len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative logprob."""
        return perplexity(self.log_likelihood, self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "tokens": self.tokens,
            "log_likelihood": self.log_likelihood,
            "perplexity": self.perplexity,
            "logprobs": [each.to_dict() for each in self.logprobs],
        }


def score(model: Reader, text: str | Sequence[int], *, slice_tokens: int = SLICE) -> Score:
    """Score a text, or token ids as ``Model.tokenize`` gives them.

    Raises ``UsageError`` for fewer than two tokens or an id outside the vocabulary, ``EngineError`` where the engine
    fails.
    """
    ids = model.tokenize(text) if isinstance(text, str) else text
    spans = windows(ids, model.context, model.manifest.tokenizer.bos)
    logprobs = tuple(
        token_logprob(logits, token, 0, model.tokenizer.piece)
        for logits, token in predictions(model, spans, slice_tokens)
    )
    return Score(sum(each.logprob for each in logprobs), logprobs)


def windows(ids: Sequence[int], context: int, bos: int | None) -> list[Window]:
    """Return the windows of a text, as the module describes them. Raises ``UsageError`` for fewer than two tokens."""
    if len(ids) < 2:
        raise UsageError(f"The text has too few tokens to predict one: {len(ids)}.", hint="Give it more text.")
    found = []
    for start in range(1, len(ids), context):
        targets = tuple(ids[start : start + context])
        before = ids[0] if ids[0] == bos else ids[start - 1]
        found.append(Window((before, *targets[:-1]), targets))
    return found


def predictions(
    model: Reader, windows: Iterable[Window], slice_tokens: int = SLICE
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Yield each token to score with the logits that predict it, float32 [n_vocab].

    The model serves nobody else meanwhile. Raises as ``Model.evaluate``, and ``EngineError`` for logits that are not
    finite.
    """
    for window in windows:
        rows = chain.from_iterable(model.evaluate(window.inputs, slice_tokens))
        for logits, token in zip(rows, window.targets, strict=True):
            if not np.isfinite(logits).all():
                raise EngineError(
                    "The engine returned a logit that is not a finite number.",
                    hint="Check the bundle with: edgepack verify",
                )
            yield logits, token


def perplexity(log_likelihood: float, tokens: int) -> float:
    """Return exp(-log_likelihood / tokens), infinity where that is more than a float holds."""
    with np.errstate(over="ignore"):
        return float(np.exp(-log_likelihood / tokens))
