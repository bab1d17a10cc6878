"""Evaluate: how well a model knows a user's own text, and how far it is from another on the same text.

Both models read the text in the same windows, a slice at a time side by side, so that only two slices of logits are
ever held; see ``edgepack.decoding.score`` for the windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.logprobs import logprobs
from edgepack.decoding.score import SLICE, perplexity, predictions, windows
from edgepack.errors import UsageError
from edgepack.prefix import common_length

if TYPE_CHECKING:
    from edgepack.decoding.repro import Setup
    from edgepack.model import Model

Logits = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with the tokens scored so far and those to score."""

_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one model makes of the text. ``bits_per_byte`` is its negative log-likelihood to the base 2 over the bytes
    of the scored text, which compares models of different tokenizers; ``perplexity`` does not."""

    setup: Setup
    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class Against:
    """How the model differs from the other, which is taken for the truth.

    ``kl``: mean over scored tokens of KL(other || model) of the distributions that predict them, in nats. ``top1``:
    fraction of them for which both find the same token likeliest. ``perplexity_ratio``: the model's perplexity over
    the other's.
    """

    other: Evaluated
    kl: float
    top1: float
    perplexity_ratio: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The figures of one text: ``tokens`` scored, in ``windows`` of at most ``context`` tokens, and the UTF-8
    ``bytes`` that they decode to."""

    model: Evaluated
    tokens: int
    bytes: int
    windows: int
    context: int
    against: Against | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def evaluate(
    model: Model,
    text: str,
    *,
    against: Model | None = None,
    limit: int | None = None,
    slice_tokens: int = SLICE,
    progress: Progress | None = None,
) -> EvalReport:
    """Score a text with a model, and compare its predictions with another's where one is given.

    ``limit`` is the most tokens of the text to read. The windows are those of the smaller context. Raises
    ``UsageError`` for a text of fewer than two tokens, and where the other model reads it as other tokens or has
    another vocabulary; ``EngineError`` as ``Model.evaluate``, and for logits that are not finite.
    """
    ids = model.tokenize(text)[:limit]
    context = model.context
    if against is not None:
        _check_comparable(model, against, ids, against.tokenize(text)[:limit])
        context = min(context, against.context)
    spans = windows(ids, context, model.manifest.tokenizer.bos)
    sums, total = _Sums(), len(ids) - 1
    ours = predictions(model, spans, slice_tokens)
    others = repeat(None, total) if against is None else predictions(against, spans, slice_tokens)
    for tokens, ((logits, token), other) in enumerate(zip(ours, others, strict=True), 1):
        sums.add(token, logits, None if other is None else other[0])
        if progress is not None:
            progress(tokens, total)
    size = len(model.detokenize(ids[1:]).encode())
    return EvalReport(
        model=_evaluated(model, sums.log_likelihood, total, size),
        tokens=total,
        bytes=size,
        windows=len(spans),
        context=context,
        against=None if against is None else sums.against(_evaluated(against, sums.other, total, size), total),
    )


def divergence(p: Logits, q: Logits) -> float:
    """Return KL(p || q) in nats of the distributions that two rows of finite logits stand for, in float64.

    With weights exp(logit - largest) it is sum(w_p (log w_p - log w_q)) / sum(w_p) - log(sum(w_p) / sum(w_q)), added up
    block by block: arrays of a whole vocabulary would cost more memory traffic than arithmetic.
    """
    largest_p, largest_q = float(p.max()), float(q.max())
    total_p = total_q = cross = 0.0
    for start in range(0, p.size, _BLOCK):
        log_p = p[start : start + _BLOCK].astype(np.float64) - largest_p
        log_q = q[start : start + _BLOCK].astype(np.float64) - largest_q
        weights = np.exp(log_p)
        total_p += float(weights.sum())
        total_q += float(np.exp(log_q).sum())
        cross += float(np.dot(weights, log_p - log_q))
    return cross / total_p - math.log(total_p / total_q)


class _Sums:
    """What adds up over the scored tokens."""

    def __init__(self) -> None:
        self.log_likelihood = self.other = self.kl = 0.0
        self.same = 0

    def add(self, token: int, logits: Logits, other: Logits | None) -> None:
        self.log_likelihood += logprobs(logits, [token])[0]
        if other is not None:
            self.other += logprobs(other, [token])[0]
            self.kl += divergence(other, logits)
            self.same += int(logits.argmax() == other.argmax())

    def against(self, other: Evaluated, tokens: int) -> Against:
        ratio = perplexity(self.log_likelihood - self.other, tokens)
        return Against(other, self.kl / tokens, self.same / tokens, ratio)


def _evaluated(model: Model, log_likelihood: float, tokens: int, size: int) -> Evaluated:
    return Evaluated(model.setup, perplexity(log_likelihood, tokens), -log_likelihood / math.log(2) / size)


def _check_comparable(model: Model, against: Model, ids: Sequence[int], others: Sequence[int]) -> None:
    """Raise ``UsageError`` where two models do not predict the same tokens from the same tokens."""
    hint = "Evaluate each by itself: bits per byte compare models of different tokenizers."
    if ids != others:
        place = common_length(ids, others)
        raise UsageError(
            f"The two bundles read the text as different tokens: at index {place}, {model.manifest.name} has "
            f"{_token(model, ids[place:])} and {against.manifest.name} {_token(against, others[place:])}.",
            hint=hint,
        )
    rows, other_rows = model.manifest.decoder.n_vocab, against.manifest.decoder.n_vocab
    if rows != other_rows:
        raise UsageError(f"The two bundles have vocabularies of {rows} and {other_rows} tokens.", hint=hint)


def _token(model: Model, ids: Sequence[int]) -> str:
    """Name the first of some tokens."""
    return f"{ids[0]} ({model.tokenizer.piece(ids[0])!r})" if ids else "none"
