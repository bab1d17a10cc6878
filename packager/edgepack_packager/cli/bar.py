"""A build's progress on a terminal, and what interrupts it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from edgepack.cli import screen


class Interrupts:
    """Let a SIGTERM end a build as Ctrl-C does, so that it cleans up, and let neither get lost.

    An extension module that is being imported may swallow the exception or replace it: then the next step raises it.
    """

    def __init__(self) -> None:
        self._pending = False

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if one came."""
        if self._pending:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is not None:
            self.check()


class Bar:
    """A build's progress on a terminal: a line a stage, which stays, and a bar while it runs."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._bar, self._interrupts = screen.stages(), interrupts

    def stage(self, title: str, total: int) -> None:
        """Begin a stage; the one before is done."""
        self._interrupts.check()
        self._finish()
        self._bar.add_task(title, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._interrupts.check()
        self._bar.advance(self._bar.task_ids[-1], steps)

    def warn(self, sentence: str) -> None:
        """Print a sentence above the bar, on standard error whether that is a terminal or not."""
        from rich.text import Text

        self._bar.console.print(Text(f"note: {sentence}", "yellow"), soft_wrap=True)

    def _finish(self) -> None:
        for task in self._bar.tasks:
            self._bar.update(task.id, completed=task.total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._bar.stop()
