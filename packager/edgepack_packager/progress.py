"""Who watches a build."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of each stage of a build and of the steps done in it."""

    def stage(self, title: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        ...

    def advance(self, steps: int = 1) -> None:
        """So many steps of the current stage are done."""
        ...

    def warn(self, sentence: str) -> None:
        """Something is not as one might expect, and the build goes on."""
        ...


class Within:
    """Tells another progress of a part of its build, with what that is before each title and sentence."""

    def __init__(self, progress: Progress, part: str) -> None:
        self._progress, self._part = progress, part
        self.advance = progress.advance

    def stage(self, title: str, total: int) -> None:
        """A stage of the part begins."""
        self._progress.stage(f"{self._part}: {title}", total)

    def warn(self, sentence: str) -> None:
        """Something of the part is not as one might expect."""
        self._progress.warn(f"{self._part}: {sentence}")


class Silent:
    """A progress that nobody watches."""

    def stage(self, title: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def warn(self, sentence: str) -> None: ...
