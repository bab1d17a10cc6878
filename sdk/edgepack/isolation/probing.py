"""What a registered runtime says of itself, asked in a child process: an engine that aborts, hangs or needs another
processor becomes a reason.

Run as ``python -m edgepack.isolation.probing <name>``, with the facts of the machine as JSON on standard input. Its
speed is asked in another child, ``edgepack.isolation.timing``, and only where it can be remembered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib.machinery import PathFinder
from importlib.metadata import entry_points, metadata
from pathlib import Path
from typing import Final

import msgspec

from edgepack import runtime, threads
from edgepack.device.engine import Rate, Speed
from edgepack.device.hardware import Hardware
from edgepack.device.state import circumstances, recall, remember, stamps
from edgepack.errors import EngineError
from edgepack.isolation import process, timing
from edgepack.runtime import Runtime, Support

INSIDE: Final = "EDGEPACK_PROBING"
"""A variable of the environment that is set in a child of this module: it may crash, and its parent gives a reason."""

_TIMEOUT_S: Final = 120.0

_answers: dict[tuple[str, str], Support] = {}
_speeds: dict[tuple[str, str, frozenset[str]], Speed | None] = {}
_lock = threads.lock()


def probe(name: str, hardware: Hardware, *, schemes: Collection[str] = (), timeout_s: float = _TIMEOUT_S) -> Support:
    """Return what a registered runtime says of itself, with its speed on the CPU where ``schemes`` are given. Never
    raises.

    It is asked once per process; that it can run is remembered until something changes on which its answer depends.
    A frozen program has no interpreter to start, and asks in its own process.
    """
    if not process.can_start():
        return ask(name, runtime.find, hardware)
    now = _now(name, hardware)
    with _lock:
        if (name, now) not in _answers:
            _answers[name, now] = recall(_question(name), now, Support) or _found(name, now, hardware, timeout_s)
        support = _answers[name, now]
        if not schemes or "cpu" not in support.devices:
            return support
        timed = name, now, frozenset(schemes)
        if timed not in _speeds:
            _speeds[timed] = timing.find(name, now, hardware, schemes)
        return replace(support, speed=_speeds[timed])


def known_rates(name: str, hardware: Hardware) -> dict[str, Rate]:
    """Return the rates of a registered runtime that probes found with its speed. Nothing is asked or measured."""
    return timing.known_rates(name, _now(name, hardware))


def _now(name: str, hardware: Hardware) -> str:
    """Return the circumstances under which a runtime's answers hold."""
    # How much memory is free changes all the time, and no engine comes or goes with it.
    facts = msgspec.json.encode(replace(hardware, memory_available=0)).decode()
    return circumstances(facts, stamps(_sources(name)))


def ask(name: str, find: Callable[[str], Runtime], hardware: Hardware) -> Support:
    """Return what a runtime says of itself in this process; whatever it raises becomes a reason."""
    try:
        return find(name).probe(hardware)
    except Exception as error:  # a third party's runtime may fail in any way
        return Support((), reason=f"the runtime cannot be used: {error}", install=_install(name))


def main() -> None:
    """Answer for the runtime that the first argument names, as JSON."""
    os.environ[INSIDE] = "1"
    answer = process.answering()
    hardware = msgspec.json.decode(sys.stdin.buffer.read(), type=Hardware)
    answer.write(msgspec.json.encode(ask(sys.argv[1], runtime.find, hardware)))
    answer.flush()
    os._exit(0)  # what an engine does at the end of an interpreter is no part of the answer


def _found(name: str, now: str, hardware: Hardware, timeout_s: float) -> Support:
    what = f"The probe of {name}"
    try:
        answer = process.run(what, __name__, name, given=msgspec.json.encode(hardware), timeout_s=timeout_s)
        support = msgspec.json.decode(answer, type=Support)
    except EngineError as error:
        return Support((), reason=error.message)
    except msgspec.DecodeError:
        return Support((), reason=f"{what} ended without a valid answer.")
    except OSError as error:
        return Support((), reason=f"{what} could not be started: {error}.")
    if support.devices:
        remember(_question(name), now, answer)
    return support


def _question(name: str) -> str:
    return f"probe of {name}"


def _install(name: str) -> str | None:
    extras = metadata("edgepack").get_all("Provides-Extra") or ()
    return f"pip install 'edgepack[{name}]'" if name in extras else None


def _sources(name: str) -> Iterator[Path]:
    """Yield the Python files of a runtime's module. Nothing is imported, not even the packages above it."""
    for entry in entry_points(group="edgepack.runtimes", name=name):
        parts = entry.value.partition(":")[0].strip().split(".")
        places, origin = None, None
        for count in range(1, len(parts) + 1):
            spec = PathFinder.find_spec(".".join(parts[:count]), places)
            if spec is None:
                return
            places, origin = spec.submodule_search_locations, spec.origin
        if origin:
            yield from Path(origin).parent.glob("*.py") if places else [Path(origin)]


if __name__ == "__main__":
    main()
