"""The list of all promises, each with its faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from contract.case import Case

Fault = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise: ``check`` raises where it does not hold, each of ``faults`` plants a reason why it should."""

    check: Callable[[Case], None]
    faults: list[Fault] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is promised, as an identifier."""
        return self.check.__name__

    def broken_by(self, fault: Fault) -> Fault:
        """Add a fault."""
        self.faults.append(fault)
        return fault


PROMISES: list[Promise] = []


def promise(check: Callable[[Case], None]) -> Promise:
    """Add a promise to the list."""
    PROMISES.append(Promise(check))
    return PROMISES[-1]
