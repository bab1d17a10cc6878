"""How fast a runtime computes here: asked in a child process once it is known to run, and remembered.

Run as ``python -m edgepack.isolation.timing <name>``, with a ``Question`` as JSON on standard input. What
is not certain is used, and measured again by the next process, a few times, and the best of it is kept: others only
make a product slower. Where nothing can be remembered nothing is measured, since each start would pay for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec

from edgepack import runtime
from edgepack.device.engine import Rate, Speed
from edgepack.device.hardware import Hardware
from edgepack.device.neighbours import disturbs, look, taken
from edgepack.device.state import recall, remember
from edgepack.errors import EdgepackError
from edgepack.isolation import process

TRIES: Final = 3
"""Measurements that are not certain before the best of them must do."""

_TIMEOUT_S: Final = 120.0

_ENOUGH_S: Final = 6.0
"""No product is begun after so many seconds, as on a slow device with many types; and none is measured again."""

_BUSY_S: Final = 2.0
"""The same beside busy programs, where a measurement takes many times as long and says little."""


class Question(msgspec.Struct, frozen=True):
    """What the child is asked: the speed of the products of some schemes on a machine."""

    hardware: Hardware
    schemes: tuple[str, ...]


class _Kept(msgspec.Struct, frozen=True):
    """What is remembered: ``tries`` counts those that began, since one may end its process."""

    tries: int
    speed: Speed | None = None


def find(name: str, now: str, hardware: Hardware, schemes: Collection[str]) -> Speed | None:
    """Return a registered runtime's speed with ``schemes`` under the circumstances ``now``; None where it is not known.

    Measures only what is not known for good. Never raises.
    """
    asked = tuple(sorted(schemes))
    question = f"speed of {name} with {' '.join(asked)}"
    known = recall(question, now, _Kept)
    best = known.speed if known else None
    tries = known.tries if known else 0
    if tries >= TRIES or (best and best.settled):
        return best
    begun = _Kept(tries + 1, best)
    remember(question, now, msgspec.json.encode(begun))
    if recall(question, now, _Kept) != begun:
        return None
    with suppress(EdgepackError, OSError, msgspec.DecodeError):
        what, given = f"The timing of {name}", msgspec.json.encode(Question(hardware, asked))
        answer = process.run(what, __name__, name, given=given, timeout_s=_TIMEOUT_S)
        measured = msgspec.json.decode(answer, type=Speed | None)
        if measured is None:  # the runtime does not tell, and will not tell the next time
            begun = _Kept(TRIES)
        else:
            best = replace(better(best, measured), tries=begun.tries)
            begun = _Kept(begun.tries, best)
        remember(question, now, msgspec.json.encode(begun))
        if measured is not None and measured.settled:
            both = {**known_rates(name, now), **measured.rates}
            remember(_of_all(name), now, msgspec.json.encode(both))
    return best


def known_rates(name: str, now: str) -> dict[str, Rate]:
    """Return what is known for certain of a runtime's rates from all questions so far; nothing is measured for it."""
    return recall(_of_all(name), now, dict[str, Rate]) or {}


def _of_all(name: str) -> str:
    return f"rates of {name}"


def better(known: Speed | None, found: Speed) -> Speed:
    """Return what is to be kept of two measurements: one that nobody disturbed, or else the faster of each figure."""
    if known is None or found.settled:
        return found
    both = {name: _least(rate, found.rates.get(name, rate)) for name, rate in known.rates.items()}
    return replace(found, rates={**found.rates, **both}, layer=_least(known.layer, found.layer))


def _least(one: Rate, other: Rate) -> Rate:
    return Rate(min(one.prefill, other.prefill), min(one.decode, other.decode))


def main() -> None:
    """Answer for the runtime that the first argument names, as JSON: a speed, or null where it tells none."""
    began = look()
    answer = process.answering()
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    engine, speed, threads = runtime.find(sys.argv[1]), None, asked.hardware.threads
    if isinstance(engine, runtime.Timed):
        limit_s = _BUSY_S if disturbs(taken(began, look()), threads) else _ENOUGH_S
        speed = engine.speed(asked.hardware, asked.schemes, limit_s)
    answer.write(msgspec.json.encode(speed))
    answer.flush()
    os._exit(0)  # as after a probe


if __name__ == "__main__":
    main()
