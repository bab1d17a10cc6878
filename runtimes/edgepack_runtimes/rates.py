"""Rates that an engine's speed is made of, from the times of whole layers."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgepack.device.engine import Rate
from edgepack.device.memory import CHUNK

FAR: Final = 7 * CHUNK
"""Positions by which one of two measurements of attention has more before it than the other."""

LEAST_S: Final = 1e-6
"""What each difference is in any case, and a disturbed measurement may hide."""


class Times(NamedTuple):
    """Seconds of one layer: with a chunk of a prompt, and with one token."""

    chunk: float
    step: float


def attention(near: Times, far: Times, q_size: int) -> Rate:
    """Return the rate of a value of a query, of ``q_size``, with one before it: what ``FAR`` more positions add."""
    products = 2 * q_size * FAR
    return Rate(
        max(LEAST_S, far.chunk - near.chunk) / CHUNK / products,
        max(LEAST_S, far.step - near.step) / products,
    )


def beside(times: Times, weights: int, rate: Rate, attention: Rate, q_size: int, before: int) -> Rate:
    """Return what a layer costs beside its products: those with its weights, and those of attention.

    The chunk of ``times`` begins a text, its step stands after ``before`` tokens.
    """
    chunk = times.chunk / CHUNK - weights * rate.prefill - q_size * CHUNK * attention.prefill
    step = times.step - weights * rate.decode - 2 * q_size * before * attention.decode
    return Rate(max(LEAST_S, chunk), max(LEAST_S, step))


def mixed(one: Rate, other: Rate, share: float) -> Rate:
    """Return the rate of a mixture of which ``share`` is ``other``."""
    return Rate(
        one.prefill + share * (other.prefill - one.prefill),
        one.decode + share * (other.decode - one.decode),
    )
