"""From logits to the next token: one sampler for every engine, so that the same seed and logits give the same text.

It knows token ids and numbers only. The rules, in the order in which they apply:

0. Where a mask says which tokens are allowed, the logits of all others are -inf.
1. ``repetition_penalty`` r (CTRL, arXiv:1909.05858): the logit of each token of the prompt or of the text so far is
   divided by r where it is positive and multiplied by r where it is negative, in float32.
2. ``temperature`` 0 takes the largest logit, the lowest id among equals, and nothing else applies.
3. A token's weight is exp((logit - largest) / temperature), in float32; sums of weights are in float64.
4. ``top_k`` k > 0 keeps the first k tokens in the order (-logit, id).
5. ``top_p`` p < 1 keeps the shortest beginning of that order that has at least the part p of the weight left.
6. ``min_p`` q > 0 keeps the tokens with at least q times the largest weight.
7. A uniform number u of numpy's PCG64, seeded with ``seed``: the first id at which the running sum of the weights that
   top_k and min_p keep, by ascending id, exceeds u times their sum. Where top_p does not keep that id, another u,
   without it and all behind it in the order. (Ids do not move where two engines' logits differ by a rounding;
   neighbours in the order of the logits do.)

So nothing is sorted: whether top_p keeps a token is one sum over the tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from secrets import randbits
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EngineError, UsageError

_FLOAT32 = np.dtype(np.float32)
_BLOCK = 256  # weights that are added up at once
# exp(-60) times any vocabulary is less than half a unit in the last place of a sum that is at least 1.
_NEGLIGIBLE = 60.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; see the module for the rules. The defaults are greedy.

    ``temperature`` 0, or 1e-6 to 100; ``top_p`` above 0 to 1 (1 is off); ``top_k`` 0 (off) or more; ``min_p`` 0 (off)
    to 1; ``repetition_penalty`` 0.01 to 100 (1 is off); ``seed`` 0 to 2**64 - 1, or None for a random one.
    Raises ``UsageError`` that names the parameter and its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature = _number("temperature", self.temperature, "0, or from 1e-6 to 100")
        _check("temperature", temperature, temperature == 0 or 1e-6 <= temperature <= 100, "0, or from 1e-6 to 100")
        top_p = _number("top_p", self.top_p, "above 0 and at most 1")
        _check("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1")
        top_k = _integer("top_k", self.top_k, "0 (off) or a positive integer")
        _check("top_k", top_k, top_k >= 0, "0 (off) or a positive integer")
        min_p = _number("min_p", self.min_p, "from 0 to 1")
        _check("min_p", min_p, 0 <= min_p <= 1, "from 0 to 1")
        penalty = _number("repetition_penalty", self.repetition_penalty, "from 0.01 to 100")
        _check("repetition_penalty", penalty, 0.01 <= penalty <= 100, "from 0.01 to 100")
        plain = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
        if self.seed is not None:
            seed = _integer("seed", self.seed, "an integer from 0 to 2**64 - 1")
            _check("seed", seed, 0 <= seed < 2**64, "an integer from 0 to 2**64 - 1")
            plain["seed"] = seed
        for name, value in {**plain, "repetition_penalty": penalty}.items():
            object.__setattr__(self, name, value)

    def resolved(self) -> Sampling:
        """Return the same with a random seed of 32 bits where there is none and the choice is not greedy."""
        return replace(self, seed=randbits(32)) if self.seed is None and self.temperature > 0 else self

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def _number(name: str, value: object, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} is {value!r}.", hint=f"It must be a number: {allowed}.")
    return float(value)


def _integer(name: str, value: object, allowed: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r}.", hint=f"It must be {allowed}.")
    return int(value)


def _check(name: str, value: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise UsageError(f"{name} is {value!r}.", hint=f"It must be {allowed}.")


class Sampler:
    """Chooses the tokens of one text, after the tokens of its prompt. ``sampling`` is what it uses, with the seed."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        self.sampling = sampling.resolved()
        self._random = np.random.Generator(np.random.PCG64(self.sampling.seed)) if sampling.temperature > 0 else None
        self._seen = _Seen(prompt_ids) if sampling.repetition_penalty != 1 else None
        self._scratch = _Scratch(0)
        self._bound = np.empty(0, np.float32)

    def __call__(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """Return the next token for logits, float32 [n_vocab], which are left as they are.

        ``allowed``: bool [n_vocab], the tokens that may be chosen; None for all.
        Raises ``EngineError`` where the largest logit is not a finite number; a logit of -inf is never chosen.
        Raises ``ValueError`` for a mask that allows nothing, or is of another length.
        """
        if self._random is None and self._seen is None and logits.dtype is _FLOAT32:
            # Nothing is computed that could overflow. To say that it may takes numpy 40 us after a step of the engine,
            # whose weights have taken the processor's caches.
            return self._next(logits if allowed is None else self._masked(logits, allowed))
        with np.errstate(over="ignore"):  # masks are often written as the lowest float32
            x = np.asarray(logits, dtype=np.float32)
            return self._next(x if allowed is None else self._masked(x, allowed))

    def _masked(self, x: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the logits with -inf where they are not allowed, in memory that the next call uses again."""
        if allowed.shape != x.shape:
            raise ValueError(f"the mask is of shape {allowed.shape}, the logits of {x.shape}")
        if not allowed.any():
            raise ValueError("the mask allows no token")
        if self._bound.size != x.size:
            self._bound = np.empty_like(x)
        self._bound.fill(-np.inf)
        np.copyto(self._bound, x, where=allowed)
        return self._bound

    def _next(self, x: NDArray[np.float32]) -> int:
        if self._seen is not None:
            x = self._seen.penalized(x, np.float32(self.sampling.repetition_penalty))
        best = int(x.argmax())
        largest = float(x[best])
        if not math.isfinite(largest):
            raise EngineError(
                f"The engine returned logits whose largest is {largest}.",
                hint="Check the bundle with: edgepack verify",
            )
        token = best if self._random is None else self._draw(x, largest, self._random)
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _draw(self, x: NDArray[np.float32], largest: float, random: np.random.Generator) -> int:
        s = self.sampling
        ids: NDArray[np.intp] | None = None
        if 0 < s.top_k < x.size:
            ids = top_indices(x, s.top_k)
            x = x[ids]
        # What is below the floor has no weight beside the largest, or is cut by min_p; the margin covers rounding.
        reach = s.temperature * (-math.log(s.min_p) if s.min_p > 0 and s.top_p == 1 else _NEGLIGIBLE)
        floor = np.float32(largest - reach - 1e-5 * (1 + abs(largest) + reach))
        if x.min() < floor and np.count_nonzero(x >= floor) < x.size // 4:
            kept = np.flatnonzero(x >= floor)
            x, ids = x[kept], kept if ids is None else ids[kept]
        if self._scratch.size < x.size:
            self._scratch = _Scratch(x.size)
        weights = self._weigh(x, largest)
        limit = s.top_p * float(_block_sums(weights).sum())
        if s.min_p > 0:
            weights *= weights >= np.float32(s.min_p)
        ends = _block_sums(weights).cumsum()
        index = _pick(weights, ends, random.random())
        while s.top_p < 1 and not self._before(index, x, weights) < limit:
            # Nor does top_p keep what stands behind this token: each draw leaves about half of the rest.
            weights *= x >= x[index]
            weights[index:][x[index:] == x[index]] = 0
            ends = _block_sums(weights).cumsum()
            index = _pick(weights, ends, random.random())
        return index if ids is None else int(ids[index])

    def _before(self, index: int, x: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
        """Return the weight of the tokens that stand before this one in the order (-logit, index)."""
        larger = self._scratch.larger[: x.size]
        np.multiply(weights, x > x[index], out=larger)
        equals = np.count_nonzero(x[:index] == x[index])
        return float(_block_sums(larger).sum()) + equals * float(weights[index])

    def _weigh(self, x: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
        """Return exp((x - largest) / temperature) in the scratch memory."""
        weights = self._scratch.weights[: x.size]
        np.subtract(x, np.float32(largest), out=weights)
        weights /= np.float32(self.sampling.temperature)
        return np.exp(weights, out=weights)


class _Scratch:
    """Memory for arrays of a vocabulary's size: fresh pages for each token would cost more than the arithmetic."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.weights = np.empty(size, np.float32)
        self.larger = np.empty(size, np.float32)


class _Seen:
    """The distinct tokens of a text, in an array that grows by doubling."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._known = set(ids)
        self._count = len(self._known)
        self._ids = np.fromiter(self._known, np.intp, self._count)
        self._buffer = np.empty(0, np.float32)

    def add(self, token: int) -> None:
        if token in self._known:
            return
        self._known.add(token)
        if self._count == self._ids.size:
            self._ids = np.resize(self._ids, max(64, 2 * self._count))
        self._ids[self._count] = token
        self._count += 1

    def penalized(self, logits: NDArray[np.float32], penalty: np.float32) -> NDArray[np.float32]:
        if self._buffer.size != logits.size:
            self._buffer = np.empty_like(logits)
        np.copyto(self._buffer, logits)
        ids = self._ids[: self._count]
        seen = logits[ids]
        self._buffer[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        return self._buffer


def _pick(weights: NDArray[np.float32], ends: NDArray[np.float64], uniform: float) -> int:
    """Return the first index whose running sum exceeds ``uniform`` times the sum; ``ends`` are those of the blocks."""
    target = uniform * float(ends[-1])
    block = _first_above(ends, target)
    before = float(ends[block - 1]) if block else 0.0
    sums = before + weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    # The two ways of adding up may differ in the last place; no running sum may pass the end of its block.
    return block * _BLOCK + _first_above(np.minimum(sums, ends[block]), target)


def _block_sums(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sums of neighbouring blocks of weights."""
    whole = weights.size // _BLOCK * _BLOCK
    blocks = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    return np.append(blocks, weights[whole:].sum(dtype=np.float64))


def _first_above(sums: NDArray[np.float64], weight: float) -> int:
    """Return the first index whose running sum exceeds the weight; for a weight past the end, the last that adds."""
    return int(sums.searchsorted(min(weight, float(np.nextafter(sums[-1], 0))), side="right"))


def top_indices(x: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the indices of the first k values in the order (-value, index), themselves in ascending order."""
    if k >= x.size:
        return np.arange(x.size)
    # The k-th largest of the maxima of disjoint blocks is a floor that at least k values reach, and few more do.
    rows = max(1, x.size // (4 * k))
    columns = x.size // rows
    maxima = x[: rows * columns].reshape(rows, columns).max(axis=0)
    last = np.partition(maxima, columns - k)[columns - k]
    above = np.flatnonzero(x > last)
    if above.size > k:
        values = x[above]
        last = np.partition(values, values.size - k)[values.size - k]
        above = above[values > last]
    level = np.flatnonzero(x == last)[: k - above.size]
    return np.sort(np.concatenate([above, level]), kind="stable")
