"""States of earlier lengths, for layers whose state cannot be cut: one can only go back to where it was kept."""

from __future__ import annotations

from typing import Generic, TypeVar

from edgepack.device.memory import MARKS

State = TypeVar("State")


class Marks(Generic[State]):
    """At most ``MARKS`` states, by the tokens that they are after.

    Where there are too many, the one goes that the next one follows most closely, so that the others lie apart; the
    newest stays.
    """

    def __init__(self) -> None:
        self._states: dict[int, State] = {}

    def __contains__(self, length: object) -> bool:
        """Whether the state after so many tokens is kept; it is the same as now where a session has as many."""
        return length in self._states

    def keep(self, length: int, state: State) -> None:
        """Keep the state after so many tokens, which are more than those of any mark, or as many as the newest's."""
        self._states[length] = state
        if len(self._states) > MARKS:
            lengths = [0, *self._states]
            gaps = {lengths[i]: lengths[i + 1] - lengths[i - 1] for i in range(1, len(lengths) - 1)}
            del self._states[min(gaps, key=gaps.__getitem__)]

    def back(self, length: int) -> tuple[int, State | None]:
        """Forget the marks behind ``length``; return the newest that is left, (0, None) where none is."""
        for behind in [each for each in self._states if each > length]:
            del self._states[behind]
        newest = max(self._states, default=0)
        return newest, self._states.get(newest)

    def copied(self) -> Marks[State]:
        """Return marks of the same states."""
        copy = Marks[State]()
        copy._states = dict(self._states)
        return copy

    def clear(self) -> None:
        """Forget all."""
        self._states.clear()
