"""What a server may take: seconds, and bytes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT = 4 << 20
"""Bytes of one event of a stream: some 20 alternatives for each of thousands of tokens."""
MAX_ANSWER = 64 << 20
MAX_PROBE = 1 << 20
MAX_REFUSAL = 1 << 16


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a server may take: to be reached, for the next ``piece`` of an answer, for the ``whole`` of one,
    and for a question what it is (``probe``)."""

    piece: float
    whole: float
    reach: float
    probe: float

    @classmethod
    def of(cls, piece: float) -> Patience:
        """Return the patience for an application that waits so long for a piece."""
        return cls(piece, 12 * piece, min(piece, 20.0), min(piece, 20.0))
