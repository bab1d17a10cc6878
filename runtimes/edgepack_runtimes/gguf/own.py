"""What only an engine has that ``edgepack engine build`` compiled: variants for processors, of which the best is
loaded, and threads of its own, which sleep where they wait for long.

Written from ggml-backend.h, ggml-cpu.h and ggml.h of the version that ``library`` names, and the packager's waiting.h.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import Structure, c_bool, c_char_p, c_int, c_uint32, c_void_p
from pathlib import Path
from typing import Final

_MOST_THREADS: Final = 512  # GGML_MAX_N_THREADS
_POLL: Final = 10
"""Of 100: how long threads poll for the next step before they sleep. About 25 ms here, where the default is 130: what a
caller does between two tokens takes a few."""


CAN_SLEEP: Final = sys.platform == "linux"
"""Whether threads sleep where they wait for long; elsewhere they spin."""

ASLEEP: Final = 0.1
"""The part of its time that a thread sleeps at barriers on free cores. Measured of two threads that decode with a model
of 135M weights, whose operators are short: 8 % in the median of windows of 0.1 s, up to 22 %; beside a busy program
50 %."""

_VARIANT: Final = "libggml-cpu-"
_SPIN: Final = -1  # rounds of spinning before a thread sleeps
_SLEEP: Final = 0


class PoolParams(Structure):
    """struct ggml_threadpool_params."""

    _fields_ = (
        ("cpumask", c_bool * _MOST_THREADS),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


class Pools:
    """The threads of an engine of our own: a pool for each context, which stays from one step to the next.

    ``cpu`` is the library of the processor's backend, whose symbols these are; ``native`` that of llama.cpp.
    ``variant`` is the name of that backend where it was chosen among several: "haswell", "armv8.2_1".
    """

    def __init__(self, native: ctypes.CDLL, cpu: ctypes.CDLL, variant: str = "") -> None:
        self._native, self.variant = native, variant
        self._default, self._new, self._free = (
            native.ggml_threadpool_params_default,
            cpu.ggml_threadpool_new,
            cpu.ggml_threadpool_free,
        )
        self._default.restype, self._default.argtypes = PoolParams, (c_int,)
        self._new.restype, self._new.argtypes = c_void_p, (c_void_p,)
        self._free.restype, self._free.argtypes = None, (c_void_p,)
        self._rounds = c_int.in_dll(cpu, "edgepack_rounds")
        self._by_default = self._rounds.value
        self._attach = native.llama_attach_threadpool
        self._attach.restype, self._attach.argtypes = None, (c_void_p, c_void_p, c_void_p)
        self._detach = native.llama_detach_threadpool
        self._detach.restype, self._detach.argtypes = None, (c_void_p,)

    def attach(self, context: int, threads: int) -> int | None:
        """Give a context threads of its own, and return their pool; None for one thread, which is the caller's."""
        if threads == 1:
            return None
        params: PoolParams = self._default(min(threads, _MOST_THREADS))
        params.poll = _POLL
        pool: int | None = self._new(ctypes.byref(params))
        if pool:
            self._attach(context, pool, None)
        return pool

    def use(self, context: int, pool: int, threads: int) -> None:
        """Let a context compute with so many threads: with one, apart from its pool, which every step would wake."""
        if threads > 1:
            self._attach(context, pool, None)
        else:
            self._detach(context)

    def wait(self, spin: bool | None) -> None:
        """Say, before a step, what threads do that wait for others: spin, sleep, or sleep after a while (None)."""
        self._rounds.value = {None: self._by_default, True: _SPIN, False: _SLEEP}[spin]

    def free(self, pool: int) -> None:
        """End the threads of a pool whose context is gone."""
        self._free(pool)


def load(native: ctypes.CDLL, folder: Path) -> Pools:
    """Load the backends that lie beside an engine: accelerators, and the variant that suits the processor best.

    Nothing is taken from the working folder or from where a variable of the environment points, as ggml's own search
    does. Raises ``OSError`` where no variant runs here, ``AttributeError`` or ``ValueError`` for an engine without what
    is needed.
    """
    variants = sorted(folder.glob(f"{_VARIANT}*.so"))
    if not variants:  # compiled for one processor, and linked
        return Pools(native, native)
    native.ggml_backend_load.restype, native.ggml_backend_load.argtypes = c_void_p, (c_char_p,)
    libraries = {path: ctypes.CDLL(str(path)) for path in variants}
    best = max(variants, key=lambda path: libraries[path].ggml_backend_score())
    if not libraries[best].ggml_backend_score():
        raise OSError("it has no variant for this processor")
    others = sorted({*folder.glob("libggml-*.so")} - {*variants, folder / "libggml-base.so"})
    for path in (*others, best):
        if not native.ggml_backend_load(os.fsencode(path)) and path == best:
            raise OSError(f"{path} does not load")
    return Pools(native, libraries[best], best.stem.removeprefix(_VARIANT))
