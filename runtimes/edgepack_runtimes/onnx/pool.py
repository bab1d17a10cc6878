"""onnxruntime's threads: how many of them take part in a step, which can change between two steps.

onnxruntime sets their number when it loads a model. Yet a thread of its pool that is inside a callback of ``run_async``
takes no other work, and the others do without it. So a thread is put to rest by a run that ends before its first
operator, and whose callback waits for a lock.
"""

from __future__ import annotations

import os
import time
import weakref
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PATIENCE_S: Final = 10.0
_kept: list[InferenceSession] = []  # whose threads did not come back: better a leak than a crash


class Pool:
    """The ``threads`` of a loaded model, of which one is the caller's own. All of them take part at first."""

    def __init__(self, session: InferenceSession, threads: int) -> None:
        from onnxruntime import RunOptions

        self._session = session
        self._threads = threads
        self._options = RunOptions()
        self._options.terminate = True
        self._options.log_severity_level = 4
        self._resting: list[_Rest] = []
        self._ending: list[_Rest] = []  # whose threads are on their way back
        # At the interpreter's exit too, so that it ends with no thread inside it.
        self._finalizer = weakref.finalize(self, _wake, self._resting, self._ending, session, os.getpid())

    def use(self, count: int) -> None:
        """Let ``count`` threads take part in the next step, from 1 to all of them."""
        while self._finalizer.alive and len(self._resting) < self._threads - count:
            self._resting.append(self._rest())
        while len(self._resting) > self._threads - count:
            self._ending.append(self._resting.pop())
            self._ending[-1].lock.release()
        self._ending[:] = [rest for rest in self._ending if rest.gate()]

    def close(self) -> None:
        """Wake all threads and wait until they have left the interpreter: the model may be freed then."""
        self._finalizer()

    def _rest(self) -> _Rest:
        gate = _Gate()
        inputs = {each.name: np.zeros(()) for each in self._session.get_inputs()}
        outputs = [self._session.get_outputs()[0].name]
        self._session.run_async(outputs, inputs, _wait, gate, self._options)
        return _Rest(gate)


class _Gate:
    """What a resting thread waits at. Nothing but its run holds it, so that it is gone when the run is over."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.lock.acquire()


class _Rest:
    def __init__(self, gate: _Gate) -> None:
        self.lock = gate.lock
        self.gate = weakref.ref(gate)


def _wait(results: object, gate: _Gate, error: str) -> None:
    gate.lock.acquire()


def _wake(resting: list[_Rest], ending: list[_Rest], session: InferenceSession, process: int) -> None:
    """End all rests. The run of each holds the session, which must not be freed in a thread that it has to wait for."""
    if os.getpid() != process:  # a fork has none of the threads
        return
    for rest in resting:
        rest.lock.release()
    end = time.monotonic() + _PATIENCE_S
    while any(rest.gate() for rest in (*resting, *ending)):
        if time.monotonic() > end:
            _kept.append(session)
            return
        time.sleep(0.0005)
