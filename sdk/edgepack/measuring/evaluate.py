"""Evaluate: how well a model knows a user's own text, and how far it is from another on the same text.

Both models read the text in the same windows, a slice at a time side by side, so that only two slices of logits are
ever held; see ``edgepack.decoding.score`` for the windows. Each mean comes with its standard error, which takes the
tokens of the text for independent of each other.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.logprobs import logprobs
from edgepack.decoding.score import SLICE, perplexity, predictions, windows
from edgepack.errors import UsageError
from edgepack.prefix import common_length

if TYPE_CHECKING:
    from edgepack.bundle.manifest import Loss
    from edgepack.decoding.repro import Setup
    from edgepack.model import Model

Logits = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with the tokens scored so far and those to score."""

_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one model makes of the text. ``bits_per_byte`` is its negative log-likelihood to the base 2 over the bytes
    of the scored text, which compares models of different tokenizers; ``perplexity`` does not. Fields that end in
    ``_error`` are standard errors."""

    setup: Setup
    perplexity: float
    perplexity_error: float
    bits_per_byte: float
    bits_per_byte_error: float


@dataclass(frozen=True, slots=True)
class Against:
    """How the model differs from the other, which is taken for the truth.

    ``kl``: mean over scored tokens of KL(other || model) of the distributions that predict them, in nats. ``top1``:
    fraction of them for which both find the same token likeliest. ``perplexity_ratio``: the model's perplexity over
    the other's; its error is that of the difference on the same tokens. One below 1 is luck with the text, and no gain.
    """

    other: Evaluated
    kl: float
    kl_error: float
    top1: float
    top1_error: float
    perplexity_ratio: float
    perplexity_ratio_error: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The figures of one text: ``tokens`` scored, in ``windows`` of at most ``context`` tokens, and the UTF-8
    ``bytes`` that they decode to.

    ``source`` is what the build measured of the variant against its source in float32: not on this text, but on the
    beginning of the proof's own (``edgepack_packager/proof/probe.txt``: prose and a recipe in English, then code and
    other scripts), whose token ids the evidence has. None for a variant without a proof, or whose proof had no text.
    """

    model: Evaluated
    tokens: int
    bytes: int
    windows: int
    context: int
    against: Against | None
    source: Loss | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"source": None if self.source is None else msgspec.to_builtins(self.source)}


def mean(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of at least one value and its standard error; that of a single value, or of equal ones, is 0."""
    found = np.asarray(values, np.float64)
    return float(found.mean()), float(found.std(ddof=min(1, found.size - 1)) / np.sqrt(found.size))


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
    seen, total = _Seen(), len(ids) - 1
    ours = predictions(model, spans, slice_tokens)
    others = repeat(None, total) if against is None else predictions(against, spans, slice_tokens)
    for tokens, ((logits, token), other) in enumerate(zip(ours, others, strict=True), 1):
        seen.add(token, logits, None if other is None else other[0])
        if progress is not None:
            progress(tokens, total)
    size = len(model.detokenize(ids[1:]).encode())
    proof = model.variant.proof
    return EvalReport(
        model=_evaluated(model, seen.surprise, size),
        tokens=total,
        bytes=size,
        windows=len(spans),
        context=context,
        against=None if against is None else seen.against(_evaluated(against, seen.other, size)),
        source=None if proof is None else proof.loss.get("text"),
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


class _Seen:
    """What was seen of each scored token: the surprise of both models in nats, the KL divergence, and whether both find
    the same one likeliest."""

    def __init__(self) -> None:
        self.surprise, self.other, self.kl = array("d"), array("d"), array("d")
        self.same = array("b")

    def add(self, token: int, logits: Logits, other: Logits | None) -> None:
        self.surprise.append(-logprobs(logits, [token])[0])
        if other is not None:
            self.other.append(-logprobs(other, [token])[0])
            self.kl.append(divergence(other, logits))
            self.same.append(bool(logits.argmax() == other.argmax()))

    def against(self, other: Evaluated) -> Against:
        more, error = mean(np.subtract(self.surprise, self.other))
        ratio = perplexity(-more, 1)
        return Against(other, *mean(self.kl), *mean(self.same), ratio, _scaled(ratio, error))


def _scaled(perplexity: float, error: float) -> float:
    """Return the standard error of a perplexity from that of its logarithm."""
    return perplexity * error if error else 0.0


def _evaluated(model: Model, surprise: Sequence[float], size: int) -> Evaluated:
    nats, error = sum(surprise), mean(surprise)[1]
    found, bits = perplexity(-nats, len(surprise)), math.log(2) * size
    return Evaluated(model.setup, found, _scaled(found, error), nats / bits, error * len(surprise) / bits)


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
