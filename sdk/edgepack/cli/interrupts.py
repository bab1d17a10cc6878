"""What ends a command from outside: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interrupts:
    """Let SIGTERM and SIGHUP end what runs as Ctrl-C does, so that it cleans up, and let none of them get lost.

    An extension module that is being imported may swallow the exception or replace it: then the next step raises it.
    What was ignored when the command began, by nohup or for a job in the background, stays so.
    """

    def __init__(self) -> None:
        self._pending = False
        self._before: dict[signal.Signals, object] = {}

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if one came."""
        if self._pending:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may say what signals do
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._interrupt) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if error is not None:
            self.check()
