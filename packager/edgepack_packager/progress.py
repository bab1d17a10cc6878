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


class Silent:
    """A progress that nobody watches."""

    def stage(self, title: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def warn(self, sentence: str) -> None: ...
