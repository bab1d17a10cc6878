"""Gates: a figure of the proof, the limit that it is held to, and how one that misses it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgepack.bundle.manifest import Gate


@dataclass(frozen=True, slots=True)
class Finding:
    """A gate, and the place in the variant where its figure was found: empty where it is the whole."""

    gate: Gate
    place: str = ""

    def __str__(self) -> str:
        """The figure, where it was found, and its limit, as the end of a sentence."""
        one = self.gate
        place = f" in {self.place}" if self.place else ""
        return f"{one.name} is {one.value:g}{place}, the limit is {one.holds} {one.limit:.3g}"


def gate(name: str, value: float, holds: Literal["<=", ">="], limit: float) -> Gate:
    """Return a gate with its figure rounded to three significant digits, which is what the manifest keeps."""
    return Gate(name=name, value=float(f"{value:.3g}"), limit=limit, holds=holds)


def missed(findings: Iterable[Finding]) -> list[str]:
    """Return a sentence's end for each finding that misses its limit."""
    return [str(finding) for finding in findings if not finding.gate.passes]
