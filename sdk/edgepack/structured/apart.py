"""Where grammars are compiled: a thread of its own, with a stack that is known, and an end in time.

Native code that has begun cannot be stopped: whoever waits for it goes on, and it ends by the limits of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from edgepack import threads
from edgepack.errors import EdgepackError, SchemaError

_STACK = 64 * 1024 * 1024  # of address space: llguidance descends once for each schema and each rule, by some 5 KiB

T = TypeVar("T")


def apart(work: Callable[[Callable[[], None]], T], seconds: float) -> T:
    """Return what ``work`` returns, or raise what it raises; ``SchemaError`` when the time is over.

    ``work`` gets a function to call now and then, by which it ends too where nobody waits for it any more: after that
    time, or an exception that came to the caller meanwhile, as Ctrl-C does.
    """
    ended, left = threading.Event(), threading.Event()

    def check() -> None:
        if left.is_set():
            raise SchemaError("It takes too long to make ready what the answer is bound to.", hint="Make it simpler.")

    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work(check))
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    try:
        threads.start(threading.Thread(target=run, name="edgepack-grammar", daemon=True), _STACK)
    except RuntimeError as error:
        raise EdgepackError(f"No thread could be started: {error}.", hint="Free memory, or end threads.") from None
    try:
        if not ended.wait(seconds):
            left.set()
            check()
    finally:
        left.set()
    if failed:
        raise failed.pop()
    return made[0]
