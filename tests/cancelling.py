"""A thread that cancels a session again and again: what a step meets has to hold whenever that falls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.runtime import Session


@contextmanager
def cancelling(session: Session, pause_s: float = 0) -> Iterator[None]:
    """Cancel from another thread, after every pause, for as long as the block runs."""
    done = threading.Event()

    def keep_cancelling() -> None:
        while not done.wait(pause_s):
            session.cancel()

    thread = threading.Thread(target=keep_cancelling)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
