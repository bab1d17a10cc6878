"""Rotary position embedding: which angle a position adds to each pair of a head's elements."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.bounds import Count, HeadSize, Positive


class LinearScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="linear"):
    """All rope frequencies divided by one factor."""

    factor: Positive


class Llama3Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="llama3"):
    """Low rope frequencies divided by a factor, high ones kept, those between interpolated (Llama 3.1 and later)."""

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_context: Count


class LongRopeScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="longrope"):
    """Every rope frequency divided by a factor of its own; cosine and sine multiplied by ``magnitude`` (Phi).

    The source has two lists of factors, for sequences of up to ``original_context`` tokens and for longer ones. A
    decoder has the one that belongs to its context, so that no engine has to choose while it runs.
    """

    factors: Annotated[tuple[Positive, ...], msgspec.Meta(max_length=1 << 13)]
    magnitude: Positive
    original_context: Count


class YarnScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="yarn"):
    """High rope frequencies kept, low ones divided by a factor, a straight ramp between (YaRN, arXiv:2309.00071).

    The ramp goes from the pair that turns ``beta_fast`` times in the original context to that of ``beta_slow`` times,
    from and to a whole pair where ``whole``. Cosine and sine are multiplied by ``magnitude``.
    """

    factor: Positive
    original_context: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    magnitude: Positive = 1.0
    whole: bool = True


class ProportionalScaling(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="proportional"
):
    """The first ``turned`` pairs of a head turn, with the frequencies of a whole one; the others do not (Gemma 4)."""

    turned: Count


Scaling = LinearScaling | Llama3Scaling | LongRopeScaling | YarnScaling | ProportionalScaling


class Rope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary position embedding in the half-split layout: element i of a head rotates with element i + dim/2.

    Where ``dim`` is less than the head dimension, the elements from ``dim`` on pass through.
    """

    theta: Positive
    dim: HeadSize
    scaling: Scaling | None = None

    @property
    def magnitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return self.scaling.magnitude if isinstance(self.scaling, LongRopeScaling | YarnScaling) else 1.0

    def frequencies(self) -> NDArray[np.float32]:
        """Return the angle in radians that one position adds, per rotated pair: float32 [dim / 2].

        Unscaled: theta ** (-2 i / dim). Linear: divided by the factor; longrope: each by its own. The llama3 rule:
        with wavelength w = 2 pi / f, original context c, w < c/high stays, w > c/low becomes f/factor, and between
        the two s = (c/w - low) / (high - low) gives (1 - s) f/factor + s f.
        """
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        # Powers in float64, rounded once: the float32 power of a host's library may be off in the last place.
        powers = (np.float64(self.theta) ** exponent.astype(np.float64)).astype(np.float32)
        frequencies = np.float32(1.0) / powers
        match self.scaling:
            case None:
                return frequencies
            case LinearScaling(factor):
                return frequencies / np.float32(factor)
            case YarnScaling(factor):
                ramp = self._ramp(self.scaling)
                return frequencies / np.float32(factor) * ramp + frequencies * (1 - ramp)
            case ProportionalScaling(turned):
                return np.where(np.arange(len(powers)) < turned, frequencies, np.float32(0))
            case LongRopeScaling(factors):
                return np.float32(1.0) / (np.array(factors, np.float32) * powers)
            case Llama3Scaling(factor, low, high, context):
                wavelength = np.float32(2 * np.pi) / frequencies
                smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
                between = (1 - smooth) * (frequencies / np.float32(factor)) + smooth * frequencies
                scaled = np.where(wavelength > context / low, frequencies / np.float32(factor), between)
                return np.where(wavelength < context / high, frequencies, scaled).astype(np.float32)

    def _ramp(self, yarn: YarnScaling) -> NDArray[np.float32]:
        """Return how much of each pair's frequency is divided, 0 to 1: float32 [dim / 2]."""
        low, high = (
            self.dim * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))
            for turns in (yarn.beta_fast, yarn.beta_slow)
        )
        if yarn.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        high += 0.001 * (low == high)
        ramp: NDArray[np.float64] = np.clip((np.arange(self.dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        return ramp.astype(np.float32)
