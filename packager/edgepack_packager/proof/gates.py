"""Gates: a figure of the proof, the limit that it is held to, and what happens when it misses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgepack.bundle.manifest import Gate
from edgepack.errors import ProofError


def gate(name: str, value: float, holds: Literal["<=", ">="], limit: float) -> Gate:
    """Return a gate with its figure rounded to three significant digits, which is what the manifest keeps."""
    return Gate(name=name, value=float(f"{value:.3g}"), limit=limit, holds=holds)


def enforce(variant: str, gates: Iterable[Gate], hint: str) -> None:
    """Raise ``ProofError`` for the first gate that does not pass, naming it, its figure and its limit."""
    for one in gates:
        if not one.passes:
            raise ProofError(
                f"{variant} failed the proof: {one.name} is {one.value:g}, the limit is {one.holds} {one.limit:g}.",
                hint=hint,
            )
