"""A build's progress on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from edgepack.cli import screen
from edgepack.cli.interrupts import Interrupts


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

        screen.say(self._bar.console, Text(f"note: {sentence}", "yellow"))

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
