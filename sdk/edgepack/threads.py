"""What threads share with their whole process: locks, which a fork must not inherit held, and the size of a stack."""

from __future__ import annotations

import os
from threading import Lock, Thread, stack_size


def lock() -> Lock:
    """Return a lock for a module. In a fork it is free: a thread that held it at that moment is not there."""
    made = Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=made._at_fork_reinit)  # type: ignore[attr-defined]
    return made


_sizes = lock()


def start(thread: Thread, stack: int) -> None:
    """Start a thread with a stack of so many bytes. Raises ``RuntimeError`` where the system has none to give."""
    with _sizes:  # the size is that of the whole process
        others = stack_size(stack)
        try:
            thread.start()
        finally:
            stack_size(others)
