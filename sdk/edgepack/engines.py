"""The engines of this machine: found by name, asked what they offer, and opened as a plan says."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from edgepack import runtime
from edgepack.bundle.files import Bundle
from edgepack.device import addresses
from edgepack.device.hardware import Hardware, most_threads
from edgepack.device.planning import Candidate
from edgepack.errors import EngineError, UsageError
from edgepack.isolation import probing
from edgepack.runtime import Options, Runtime, Session, Support

Runtimes = Mapping[str, Runtime]
"""Runtimes by name that are given as objects, instead of the registered ones."""


def probe_all(
    hardware: Hardware,
    names: Iterable[str] | None = None,
    runtimes: Runtimes | None = None,
    schemes: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Support]:
    """Return what each runtime says of itself, by name; of all registered ones unless ``names`` picks some.

    A registered one that has ``schemes`` under its name comes with its speed, which takes some seconds
    where it is not remembered.
    A registered runtime is asked in a child process, so that one which crashes, hangs, or cannot even be imported is
    reported as one that cannot run. Never raises.
    """
    known = sorted(runtimes) if runtimes is not None else runtime.names()
    wanted = known if names is None else [name for name in known if name in set(names)]
    return {name: _probe(name, hardware, runtimes, (schemes or {}).get(name, ())) for name in wanted}


def find(name: str, runtimes: Runtimes | None) -> Runtime:
    """Return the runtime of that name, from ``runtimes`` where they are given, else the registered one."""
    return runtimes[name] if runtimes is not None else runtime.find(name)


def _probe(name: str, hardware: Hardware, runtimes: Runtimes | None, schemes: Collection[str]) -> Support:
    if runtimes is None:
        if short := addresses.shortage(name):
            return Support((), reason=short)
        return probing.probe(name, hardware, schemes=schemes)
    return probing.ask(name, runtimes.__getitem__, hardware)


def open_session(bundle: Bundle, candidate: Candidate, options: Options, engine: Runtime) -> Session:
    """Open a candidate's engine, without a check of its files. Raises as ``load``, and ``EngineError`` where the engine
    does not run on the device that the plan says."""
    session = engine.open(bundle.variant_path(candidate.variant), bundle.manifest.decoder, options)
    if session.device != candidate.device:
        ran = session.device
        session.close()
        raise EngineError(
            f"{candidate.variant} was to run on {candidate.device}, and {candidate.runtime} put it on {ran}.",
            hint="See what this machine offers: edgepack doctor",
        )
    return session


def with_threads(options: Options, threads: int | None) -> Options:
    """Return the options with so many threads, those that they have for None.

    Raises ``UsageError`` for less than one, and for more than ``most_threads``, at which engines end the process.
    """
    wanted = options.threads if threads is None else threads
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise UsageError(f"threads cannot be {wanted!r}.", hint="It is a number of threads, at least 1.")
    if wanted > most_threads():
        raise UsageError(
            f"threads cannot be {wanted}: this machine has {os.cpu_count() or 1} cores.",
            hint=f"Choose at most {most_threads()}, 8 for each core; more cores than that never help.",
        )
    return replace(options, threads=wanted)
